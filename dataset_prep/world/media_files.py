"""Writes the world's media: JPEG, MP4 (with or without a sound track), WAV.

Every file comes from a random generator of its own, so that none depends on another.
"""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image
from tqdm import tqdm

from dataset_prep.world import draw, sound
from dataset_prep.world.annotations import Joint, Single, WorldPlan
from dataset_prep.world.sound import RATE

FPS = 8


def write_jpeg(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 [H, W, 3]."""
    Image.fromarray(pixels).save(path, quality=92)


def write_wav(path: Path, samples: np.ndarray) -> None:
    """Write float [samples] in -1..1 as 16-bit mono at RATE."""
    soundfile.write(path, samples, RATE, subtype="PCM_16")


def write_mp4(path: Path, frames: list[np.ndarray], samples: np.ndarray | None = None) -> None:
    """Write frames uint8 [H, W, 3] as H.264 at FPS, and `samples` (float, mono, RATE) as an AAC track if given."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=FPS, options={"crf": "16", "preset": "ultrafast"})
        picture.height, picture.width = frames[0].shape[:2]
        picture.pix_fmt = "yuv420p"
        picture.thread_count = 1
        track = None
        if samples is not None:
            track = container.add_stream("aac", rate=RATE, layout="mono")
            track.bit_rate = 96_000
        for pixels in frames:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(picture.encode(None))
        if track is not None:
            step = 1024
            for start in range(0, len(samples), step):
                piece = np.ascontiguousarray(samples[None, start : start + step], dtype=np.float32)
                frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
                container.mux(track.encode(frame))
            container.mux(track.encode(None))


def write_single(root: Path, medium: Single, seed: int) -> None:
    """One picture, silent video or sound."""
    rng = random.Random(f"{seed} {medium.file}")
    path = root / medium.file
    if medium.scene.modality == "image":
        write_jpeg(path, draw.picture(medium.scene, rng))
    elif medium.scene.modality == "video":
        write_mp4(path, draw.video(medium.scene, rng))
    else:
        write_wav(path, sound.sound(medium.scene, rng))


def write_joint(root: Path, medium: Joint, seed: int) -> None:
    """A video with its sound track, or a picture and a sound file."""
    rng = random.Random(f"{seed} {medium.visual_file}")
    samples = sound.sound(medium.audio, rng)
    if medium.visual.modality == "video":
        write_mp4(root / medium.visual_file, draw.video(medium.visual, rng), samples)
    else:
        write_jpeg(root / medium.visual_file, draw.picture(medium.visual, rng))
        write_wav(root / medium.audio_file, samples)


def write_media(root: Path, plan: WorldPlan, seed: int) -> None:
    """All files of the plan, below `root`."""
    for folder in {(root / m.file).parent for m in plan.singles} | {(root / m.visual_file).parent for m in plan.joints}:
        folder.mkdir(parents=True, exist_ok=True)
    everything = [*plan.singles, *plan.joints]
    for medium in tqdm(everything, desc="media files", unit="file", mininterval=1.0):
        if isinstance(medium, Single):
            write_single(root, medium, seed)
        else:
            write_joint(root, medium, seed)
