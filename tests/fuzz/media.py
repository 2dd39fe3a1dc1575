"""Pictures, sounds and videos, through everything that opens or decodes them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import torch
from PIL import Image

from chatbridge.common.batch import RawMedia
from chatbridge.common.read_mode import EVALUATION, ReadMode, Training
from chatbridge.common.registry import PROCESSORS
from chatbridge.demo.previews import preview
from chatbridge.inference import Medium
from chatbridge.inference.attachments import guess_modality, video_sound_problem
from chatbridge.inference.limits import MediaLimits
from chatbridge.original.processors import OriginalVideoProcessor
from chatbridge.processors import ImageConfig, MediaError
from chatbridge.processors.base import Blob, Source
from dataset_prep.extract_audio import AudioExtractor
from dataset_prep.prep.frames import write_frames
from dataset_prep.prep.items import Item
from dataset_prep.prep.media_placement import check_media
from tests.fuzz.damage import damaged, misplaced
from tests.fuzz.media_damage import ALWAYS, KNOWING
from tests.fuzz.media_files import KINDS
from tests.fuzz.target import Step, Target
from tests.variants import built

READ_SECONDS = 10.0
"""For a decoder, which has twice as long before the trial counts as a hang."""

MODALITIES = ("image", "video", "audio")


class Media(Target):
    errors = (MediaError,)

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.files = {name: data for make in KINDS.values() for name, data in make().items()}
        self.modality = {name: kind for kind, make in KINDS.items() for name in make()}
        self.processors = {
            "image": [built(PROCESSORS, "image", **keys) for keys in _pictures()],
            "video": [built(PROCESSORS, "video", **keys, read_seconds=READ_SECONDS) for keys in _pictures()],
            "audio": [built(PROCESSORS, "audio", **keys, read_seconds=READ_SECONDS) for keys in _sounds()],
        }

    def trial(self, rng: random.Random, folder: Path) -> Iterator[Step]:
        given, modality = self._write(rng, folder)
        shown = modality if rng.random() < 0.8 else rng.choice(MODALITIES)
        processor = rng.choice(self.processors[shown])
        yield f"load {shown} in evaluation", partial(_loaded, processor, given, EVALUATION)
        yield f"load {shown} in training", partial(_loaded, processor, given, Training(random.Random(1)))
        limits = MediaLimits()
        yield "limits", partial(limits.check, given)
        yield "modality", partial(guess_modality, given, MODALITIES)
        yield "has sound", partial(video_sound_problem, given)
        yield f"preview {shown}", partial(_previewed, shown, given, folder / "preview", limits)
        yield f"check header {shown}", partial(check_media, shown, given, "header", processor)
        if shown == "video" and isinstance(given, Path):
            yield "frames", partial(write_frames, given, folder / "frames", 2)
            yield "frames by time", partial(write_frames, given, folder / "frames", fps=0.5)
            yield "extract sound", partial(_extracted, given, folder / "sound")

    def _write(self, rng: random.Random, folder: Path) -> tuple[Source, str]:
        modality = rng.choice(MODALITIES)
        name = rng.choice([name for name, kind in self.modality.items() if kind == modality])
        ending = Path(name).suffix
        data = self._damaged(self.files[name], ending, rng)
        # Who is sent a file knows its name, which may be wrong.
        ending = ending if rng.random() < 0.9 else rng.choice([Path(other).suffix for other in self.files])
        file = folder / f"file{ending}"
        file.write_bytes(data)
        chance = rng.random()
        if chance < 0.04:
            misplaced(file, rng)
        elif chance < 0.06:
            file = folder / rng.choice(("n" * 300, "half \ud83d.jpg", "nul\0.jpg", "missing.png", "a/" * 3000))
        elif chance < 0.4:
            return Blob(file.name, data), modality
        return file, modality

    def _damaged(self, data: bytes, ending: str, rng: random.Random) -> bytes:
        knowing, chance = KNOWING.get(ending, ()), rng.random()
        if knowing and chance < 0.4:
            return rng.choice(knowing)(data, rng)
        if chance < 0.45:
            return rng.choice(ALWAYS)(data, rng)
        return damaged(data, rng, list(self.files.values()))

    def decoded(self, folder: Path, step: str) -> int:
        """Of a picture or of the frames that are shown, four bytes a pixel, twice: as decoded, and as converted."""
        file = next((file for file in folder.glob("file.*") if file.is_file()), None)
        most = ImageConfig().max_pixels
        try:
            with Image.open(file) as picture:
                return 8 * min(most, picture.width * picture.height)
        except Exception:  # whatever is wrong with it, it is not an excuse for taking memory
            pass
        try:
            with av.open(str(file)) as container:
                return 8 * 4 * max((min(most, s.width * s.height) for s in container.streams.video), default=0)
        except Exception:
            return 0


def _pictures() -> list[dict[str, Any]]:
    small: dict[str, Any] = {"image_size": 32}
    return [
        small, small, small | {"preprocess_on": "device"}, small | {"transform": "crop_flip", "reducing_gap": 2.0},
        small | {"transform": "crop_flip", "train_resize": "bicubic"}, small | {"compat": "original"},
    ]  # fmt: skip


def _sounds() -> list[dict[str, Any]]:
    small: dict[str, Any] = {"frames_per_clip": 64}
    return [small, small, small | {"preprocess_on": "device"}, small | {"channel": "mean", "clips": 2}]


def _loaded(processor: Any, source: Source, mode: ReadMode) -> None:
    """As a dataset does; what comes must be of the shape that was promised, and numbers."""
    found = processor.load(source, mode)
    if isinstance(found, RawMedia):
        found = found.finished()[0]
    # The original takes fewer frames of a short video.
    promised = tuple(found.shape) if isinstance(processor, OriginalVideoProcessor) else processor.shape
    assert tuple(found.shape) == promised, f"shape {tuple(found.shape)}, promised {promised}"
    assert found.dtype == torch.float32 and bool(torch.isfinite(found).all()), "not finite"


def _previewed(modality: str, source: Source, folder: Path, limits: MediaLimits) -> None:
    """As the page does with what its limits let through."""
    if limits.check(source, modality).kind == modality:
        preview(Medium.of(modality, source), folder, limits)


def _extracted(file: Path, out: Path) -> None:
    part = AudioExtractor(file.parent, out, "flac", None, False, 3600.0)(0, [Item("one", {}, {}, file.name)])
    if part.dropped:
        raise MediaError(file.name, part.dropped[0].detail)
