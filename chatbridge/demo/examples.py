"""Example questions of an empty chat: from the configuration's held-out data, or else on small media drawn here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image, ImageDraw

from chatbridge.common.config import LoadedConfig
from chatbridge.datasets.kinds import TaskKind
from chatbridge.datasets.records import Record
from chatbridge.processors.media_loader import safe_name

MAX_EXAMPLES = 6

MAX_ANNOTATION_BYTES = 32 * 2**20
"""Larger annotation files are not read for an example."""

RATE, FRAMES, SIDE = 16000, 15, 160


@dataclass(frozen=True)
class ChatExample:
    """A question and the files that are shown with it."""

    text: str
    files: tuple[Path, ...]


def find_examples(loaded: LoadedConfig, modalities: Sequence[str], folder: Path) -> list[ChatExample]:
    """Examples for a model.

    Args:
        loaded: its configuration. modalities: of the model. folder: for media that are drawn here.
    """
    found: dict[tuple[str, ...], list[ChatExample]] = {}
    for dataset in loaded.config.validation.values():
        kind, example = _first(dataset)
        if example is not None and set(kind) <= set(modalities):
            found.setdefault(kind, []).append(example)
    # One for each combination of modalities, then second ones, of those first that show most.
    combinations = [*found, *sorted(found, key=len, reverse=True)]
    chosen = [found[kind][at] for at, kind in _numbered(combinations) if at < len(found[kind])]
    return chosen[:MAX_EXAMPLES] or draw_examples(modalities, folder)


def _numbered(kinds: Sequence[tuple[str, ...]]) -> list[tuple[int, tuple[str, ...]]]:
    return [(kinds[:place].count(kind), kind) for place, kind in enumerate(kinds)]


def _first(dataset: Any) -> tuple[tuple[str, ...], ChatExample | None]:
    """The first question of a held-out dataset, if its files are there."""
    try:
        kind = TaskKind.parse(dataset.kind)
        if not kind.asks or not kind.modalities:
            return (), None
        lists = dataset.annotations if isinstance(dataset.annotations, list) else [dataset.annotations]
        if Path(lists[0]).stat().st_size > MAX_ANNOTATION_BYTES:
            return (), None
        record = Record.parse(json.loads(Path(lists[0]).read_text(encoding="utf-8"))[0])
        folders = {modality: Path(dataset.media[modality]) for modality in kind.modalities}
        files = [folders[m] / safe_name(name) for m in kind.modalities for name in record.files_of(m)]
        question = record.pairs[0][0]
    except (ValueError, OSError, AttributeError, LookupError, TypeError):
        return (), None  # training would report the error; here there is no example
    unique = tuple(dict.fromkeys(files))  # a video with its own sound is one file
    return kind.modalities, ChatExample(question, unique) if all(file.is_file() for file in unique) else None


def draw_examples(modalities: Sequence[str], folder: Path) -> list[ChatExample]:
    """Examples on a picture, a sound and a video that are drawn here."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    if "image" in modalities:
        file = folder / "disc.png"
        Image.fromarray(_frame(0.5)).save(file)
        examples.append(ChatExample("What is in this picture?", (file,)))
    if "audio" in modalities:
        file = folder / "tones.wav"
        soundfile.write(file, _tones(), RATE, subtype="PCM_16")
        examples.append(ChatExample("What do you hear?", (file,)))
    if "video" in modalities:
        file = folder / "rising.mp4"
        _write_video(file)
        text = "Does what you see fit what you hear?" if "audio" in modalities else "What happens in this video?"
        examples.append(ChatExample(text, (file,)))
    return examples


def _frame(height: float) -> np.ndarray:
    """A disc above the ground, uint8 [H, W, 3]; `height` from 0 (bottom) to 1."""
    picture = Image.new("RGB", (SIDE, SIDE), "#18202c")
    middle = SIDE * (0.8 - 0.6 * height)
    ImageDraw.Draw(picture).ellipse((SIDE * 0.35, middle - 24, SIDE * 0.65, middle + 24), fill="#f2b134")
    return np.asarray(picture)


def _tones() -> np.ndarray:
    """Five rising tones: float32 [samples]."""
    time = np.arange(RATE * 3 // 10) / RATE
    envelope = np.minimum(1, np.minimum(time, time[::-1]) / 0.02)
    return np.concatenate(
        [0.3 * envelope * np.sin(2 * np.pi * pitch * time) for pitch in (262, 330, 392, 523, 659)]
    ).astype(np.float32)


def _write_video(file: Path) -> None:
    with av.open(str(file), "w", options={"movflags": "faststart"}) as container:
        pictures, sound = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=RATE)
        pictures.width = pictures.height = SIDE
        pictures.pix_fmt, sound.layout = "yuv420p", "mono"
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(_frame(number / (FRAMES - 1)), format="rgb24")
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        heard = av.AudioFrame.from_ndarray(_tones()[None], format="fltp", layout="mono")
        heard.sample_rate, heard.pts = RATE, 0
        container.mux(sound.encode(heard))
        container.mux(sound.encode(None))
