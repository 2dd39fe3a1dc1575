"""Write a plan's media: every file from a random generator of its own, so that none depends on another."""

from __future__ import annotations

import random
from pathlib import Path

from tqdm import tqdm

from dataset_prep.world import draw, files, sound
from dataset_prep.world.annotations import Joint, Plan, Single


def write_single(root: Path, medium: Single, seed: int) -> None:
    """One picture, silent video or sound."""
    rng = random.Random(f"{seed} {medium.file}")
    path = root / medium.file
    if medium.scene.modality == "image":
        files.write_jpeg(path, draw.picture(medium.scene, rng))
    elif medium.scene.modality == "video":
        files.write_mp4(path, draw.video(medium.scene, rng))
    else:
        files.write_wav(path, sound.sound(medium.scene, rng))


def write_joint(root: Path, medium: Joint, seed: int) -> None:
    """A video with its sound track, or a picture and a sound file."""
    rng = random.Random(f"{seed} {medium.visual_file}")
    samples = sound.sound(medium.audio, rng)
    if medium.visual.modality == "video":
        files.write_mp4(root / medium.visual_file, draw.video(medium.visual, rng), samples)
    else:
        files.write_jpeg(root / medium.visual_file, draw.picture(medium.visual, rng))
        files.write_wav(root / medium.audio_file, samples)


def write_media(root: Path, plan: Plan, seed: int) -> None:
    """All files of the plan, below `root`."""
    for folder in {(root / m.file).parent for m in plan.singles} | {(root / m.visual_file).parent for m in plan.joints}:
        folder.mkdir(parents=True, exist_ok=True)
    everything = [*plan.singles, *plan.joints]
    for medium in tqdm(everything, desc="media files", unit="file", mininterval=1.0):
        if isinstance(medium, Single):
            write_single(root, medium, seed)
        else:
            write_joint(root, medium, seed)
