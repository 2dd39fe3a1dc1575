"""The original's media: fewer or more frames than asked for, pictures as they are stored, a silent clip too many."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chatbridge.common.read_mode import EVALUATION, ReadMode
from chatbridge.common.registry import PROCESSORS
from chatbridge.processors.audio import AudioConfig, AudioProcessor
from chatbridge.processors.base import MissingMedia, Source
from chatbridge.processors.filter_banks import RawSounds
from chatbridge.processors.image import ImageConfig, ImageProcessor, PixelTransform
from chatbridge.processors.video import VideoConfig, VideoProcessor

PIXELS = "bilinear without antialias, camera rotation and transparency ignored"
SOUNDS = (
    "a length that is a multiple of frames_per_clip gets an empty clip more, a missing file is all zeros, a sound "
    "under 25 ms is refused"
)


@dataclass
class OriginalPixelTransform(PixelTransform):
    antialias = False
    as_stored = True


def uniform(frames: int, wanted: int) -> list[int]:
    """Steps by a rounded float: for some lengths (17 frames in 7 stretches) that gives one index more, often past the
    end, and for a short video it gives fewer."""
    return np.arange(0, frames, frames / min(frames, wanted)).astype(int).tolist()


def headtail(frames: int, wanted: int, rng: random.Random) -> list[int]:
    """One frame less for an odd number, and fewer for a short video.

    Raises:
        ValueError: when not one frame is left to take.
    """
    amount, middle = min(frames, wanted), frames // 2
    if amount < 2:
        raise ValueError(f"head and tail sampling needs two frames or more, got {frames} frames, {wanted} wanted")
    half = amount // 2
    return sorted(rng.sample(range(middle), half)) + sorted(rng.sample(range(middle, frames), half))


@dataclass(kw_only=True)
class OriginalImageConfig(ImageConfig):
    """The keys of the image processor."""


@PROCESSORS.variant("image", "original", config=OriginalImageConfig, help=PIXELS)
class OriginalImageProcessor(ImageProcessor):
    def __init__(self, config: OriginalImageConfig):
        super().__init__(config)
        self.transform = OriginalPixelTransform(config)


@dataclass(kw_only=True)
class OriginalVideoConfig(VideoConfig):
    """The keys of the video processor."""


@PROCESSORS.variant("video", "original", config=OriginalVideoConfig, help=PIXELS)
class OriginalVideoProcessor(VideoProcessor):
    uniform = staticmethod(uniform)
    headtail = staticmethod(headtail)

    def __init__(self, config: OriginalVideoConfig):
        super().__init__(config)
        self.transform = OriginalPixelTransform(config)


@dataclass(kw_only=True)
class OriginalAudioConfig(AudioConfig):
    """The keys of the audio processor."""


@PROCESSORS.variant("audio", "original", config=OriginalAudioConfig, help=SOUNDS)
class OriginalAudioProcessor(AudioProcessor):
    def load(self, source: Source, mode: ReadMode = EVALUATION) -> Tensor | RawSounds:
        """Zeros of a file that is missing."""
        try:
            return super().load(source, mode)
        except MissingMedia:
            return torch.zeros(self.shape)

    def below_one_frame(self, mono: Tensor, rate: int) -> tuple[Tensor, int]:
        raise ValueError("is too short, under 25 ms (compat: original refuses what default pads)")

    def clips_of(self, frames: int) -> int:
        """Padding is by 1 to `frames_per_clip` frames, so that a sound that fits exactly gets an empty clip."""
        return frames // self.config.frames_per_clip + 1
