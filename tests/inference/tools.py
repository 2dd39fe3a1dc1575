"""A tiny engine and media for tests that talk to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from chatbridge.inference import Engine, GenerationSettings
from tests import media_files, tiny

SHORT = GenerationSettings(max_new_tokens=10)


def write_config(folder: Path, **task) -> Path:
    """A YAML of a tiny instruction model whose answers depend on what it is shown."""
    tree = tiny.make_config(folder, "instruction")
    for bridge in tree["model"]["bridges"].values():
        bridge["perceiver"] |= {"init_std": None, "query_std": 1.0}
        bridge["projection_scale"] = "auto"
    tree["task"] |= task
    return tiny.write_yaml(folder, tree)


def make_engine(folder: Path, **task) -> Engine:
    return Engine.load(write_config(folder, **task), device="cpu")


def write_media(folder: Path) -> dict[str, Path]:
    """Two pictures, two sounds, a video with sound and a silent one, none like another."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in ("a.png", "b.png", "a.wav", "b.wav", "loud.mp4", "still.mp4")}
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(files[name])
    for name, pitch in (("a.wav", 300.0), ("b.wav", 1700.0)):
        soundfile.write(files[name], media_files.tone(0.5, pitch=pitch), 16000)
    media_files.write_video(files["loud.mp4"], [0, 80, 160, 240], sound=media_files.tone(1.0, pitch=900.0))
    media_files.write_video(files["still.mp4"], [200, 20, 90, 10])
    return files
