"""Miniature replicas of the corpora, in their real layouts, with the odd cases that the real ones have."""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

from chatbridge.common.read_mode import EVALUATION, Training
from chatbridge.processors import (
    AudioConfig,
    AudioProcessor,
    ImageConfig,
    ImageProcessor,
    MediaLoader,
    VideoConfig,
    VideoProcessor,
)
from tests.media_files import tone, write_video

QUICK = ["--workers", "0", "--quiet"]
SMALL = {
    "image": ImageProcessor(ImageConfig(image_size=16)),
    "video": VideoProcessor(VideoConfig(image_size=16)),
    "audio": AudioProcessor(AudioConfig(frames_per_clip=32)),
}
FOLDERS = {"image": "images", "video": "videos", "audio": "audio"}
ODD_CAPTIONS = ['a "quoted", dog; 50% off', "naïve café – 犬 ☃", "two\nlines", "tab\there"]


def picture(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.new("RGB", size, colour)


def jpeg(path: Path, colour: tuple[int, int, int] = (200, 30, 30), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(colour).save(path, "JPEG", **options)
    return path


def jpeg_bytes(colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    stream = io.BytesIO()
    picture(colour).save(stream, "JPEG")
    return stream.getvalue()


def noise_bytes() -> bytes:
    """A JPEG whose last bytes matter."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def odd_pictures(folder: Path) -> dict[str, bool]:
    """Pictures of all kinds; name -> whether they can be used."""
    folder.mkdir(parents=True, exist_ok=True)
    picture().convert("L").save(folder / "grey.jpg")
    picture().convert("CMYK").save(folder / "cmyk.jpg")
    layer = Image.new("RGBA", (16, 16), (10, 200, 10, 128))
    layer.save(folder / "alpha.png")
    layer.convert("P").save(folder / "palette.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture().save(folder / "turned.jpg", exif=turned)
    whole = jpeg_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("404 not found")
    good = ["grey.jpg", "cmyk.jpg", "alpha.png", "palette.png", "turned.jpg"]
    return {**dict.fromkeys(good, True), **dict.fromkeys(["cut.jpg", "empty.jpg", "text.jpg"], False)}


def odd_sounds(folder: Path, stems: list[str] | None = None) -> list[Path]:
    """Sounds that can be used: mono, stereo, 8 kHz, float, FLAC; named `stems` in this order where given."""
    folder.mkdir(parents=True, exist_ok=True)
    mono = tone(0.3)
    forms = [
        ("mono", ".wav", mono, 16000, "PCM_16"),
        ("stereo", ".wav", np.stack([mono, -mono], 1), 44100, "PCM_16"),
        ("slow", ".wav", tone(0.3, 8000), 8000, "PCM_16"),
        ("float", ".wav", mono, 32000, "FLOAT"),
        ("flac", ".flac", mono, 32000, "PCM_16"),
    ]
    paths = []
    for place, (name, ending, samples, rate, subtype) in enumerate(forms):
        path = folder / f"{stems[place] if stems else name}{ending}"
        soundfile.write(path, samples, rate, subtype=subtype)
        paths.append(path)
    return paths


def varying_video(path: Path, times: list[float], reds: list[int]) -> Path:
    """A video whose frames come at the given seconds, one flat red each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        track = container.add_stream("libx264", rate=25, options={"bf": "0"})
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        track.codec_context.time_base = Fraction(1, 1000)
        for time, red in zip(times, reds, strict=True):
            pixels = np.zeros((48, 64, 3), np.uint8)
            pixels[..., 0] = red
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return path


def video(path: Path, frames: int = 5, sound: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, [20 * n + 40 for n in range(frames)], sound=tone(1.0) if sound else None)


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",", bom: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json(path: Path, tree: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def entries(folder: Path) -> list[dict[str, Any]]:
    """What a command wrote."""
    return json.loads((folder / "annotations.json").read_text(encoding="utf-8"))


def dropped(folder: Path) -> dict[str, str]:
    """Id -> reason, of what a command left out."""
    lines = (folder / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
    return {drop.get("id", ""): drop["reason"] for drop in map(json.loads, lines)}


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def loads(folder: Path, modality: str) -> dict[str, dict[str, Any]]:
    """The entries by id; each one's medium can be read from the folder that the YAMLs name, by either set of rules."""
    loader = MediaLoader({modality: SMALL[modality]}, {modality: folder / FOLDERS[modality]})
    found = entries(folder)
    assert found
    for entry in found:
        for mode in (EVALUATION, Training(random.Random(0))):
            assert loader.load(modality, entry[f"{modality}_id"], mode).shape == SMALL[modality].shape
    counts = manifest(folder)
    assert counts["counts"]["kept"] == len(found) == counts["media"][modality]["files"]
    return {entry["id"]: entry for entry in found}


def run(command: ModuleType, *arguments: Any) -> None:
    """A command that must succeed."""
    assert command.main([*map(str, arguments), *QUICK]) == 0


def fails(capsys: Any, command: ModuleType, *arguments: Any) -> str:
    """What a command that must fail says."""
    capsys.readouterr()
    assert command.main([*map(str, arguments), *QUICK]) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.err and said.err.startswith("error: ")
    return said.err
