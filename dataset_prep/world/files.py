"""Arrays to real files: JPEG, MP4 (with or without a sound track), WAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

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
