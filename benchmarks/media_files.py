"""Media files of everyday sizes for benchmarks; each folder is made once and then used as it is."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image


def pictures(folder: Path, count: int) -> list[Path]:
    """JPEGs with the detail of photographs: smooth areas, edges and grain."""
    if folder.exists():
        return sorted(folder.glob("*.jpg"))
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        grain = rng.normal(0, 6, (375, 500, 3))
        pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        files.append(folder / f"{i:05d}.jpg")
        Image.fromarray(pixels).save(files[-1], quality=88)
    return files


def tars(folder: Path, files: list[Path]) -> Path:
    if folder.exists():
        return folder
    folder.mkdir()
    for shard in range(0, len(files), 100):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for file in files[shard : shard + 100]:
                tar.add(file, file.name)
                text = file.with_suffix(".json")
                text.write_text(json.dumps({"image_id": file.name, "caption": f"{file.stem}: what there is to see"}))
                tar.add(text, text.name)
    return folder


def videos(folder: Path, count: int) -> list[Path]:
    if folder.exists():
        return sorted(folder.glob("*.mp4"))
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        files.append(folder / f"{i:03d}.mp4")
        picture = np.asarray(Image.fromarray(rng.integers(0, 256, (16, 20, 3), np.uint8)).resize((440, 356)))
        with av.open(str(files[-1]), "w") as container:
            track = container.add_stream("libx264", rate=25)
            track.width, track.height, track.pix_fmt = 340, 256, "yuv420p"
            for frame in range(250):
                at = frame * 2 // 5
                part = np.ascontiguousarray(picture[at : at + 256, at : at + 340])
                container.mux(track.encode(av.VideoFrame.from_ndarray(part, format="rgb24")))
            container.mux(track.encode(None))
    return files


def sounds(folder: Path, count: int, ending: str, rate_hz: int) -> list[Path]:
    if folder.exists():
        return sorted(folder.glob(f"*.{ending}"))
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        files.append(folder / f"{i:03d}.{ending}")
        t = np.arange(10 * rate_hz) / rate_hz
        wave = 0.3 * np.sin(2 * np.pi * (200 + 20 * i) * t) + rng.normal(0, 0.02, len(t))
        soundfile.write(files[-1], wave.astype(np.float32), rate_hz, subtype="PCM_16")
    return files
