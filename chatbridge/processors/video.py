"""Videos: a file, or a folder of frames -> float32 [T, 3, H, W]."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from chatbridge.common.read_mode import EVALUATION, ReadMode, Training
from chatbridge.common.registry import PROCESSORS
from chatbridge.common.schema import key
from chatbridge.processors.base import MediaError, Source, is_folder, media_errors
from chatbridge.processors.image import IMAGE_EXTENSIONS, PixelConfig, PixelTransform, RawPixels
from chatbridge.processors.sampling import frame_groups, headtail, pick, uniform
from chatbridge.processors.time_limit import READ_SECONDS
from chatbridge.processors.video_files import read_frames

VIDEO_EXTENSIONS = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv")


@dataclass(kw_only=True)
class VideoConfig(PixelConfig):
    """Keys of the video processor."""

    num_frames: int = key(4, help="frames taken from a video", unit="frames", low=1, high=1024)
    train_sampling: str = key(
        "groups",
        choices=("groups", "uniform", "headtail"),
        help="groups: a random frame of each of num_frames equal parts; uniform: the first frame of each; "
        "headtail: random frames, as many from the first as from the second half",
    )
    eval_sampling: str = key(
        "uniform",
        choices=("groups", "uniform"),
        help="for video files, as above but with the middle frame of a group; folders of frames always use groups",
    )
    read_seconds: float = key(
        READ_SECONDS, help="a file that is not decoded in this time is refused", unit="seconds", low=0.1, high=1e5
    )


@PROCESSORS.register("video", config=VideoConfig)
class VideoProcessor:
    """A video file that decord reads, or a folder of pictures in name order -> [num_frames, 3, size, size].

    A video with fewer frames repeats its last one. In evaluation the original lets the decoder resize; here the
    frames go through the same bicubic resampling as pictures, which a folder of frames gets in both.
    """

    modality = "video"
    extensions = VIDEO_EXTENSIONS
    uniform = staticmethod(uniform)
    headtail = staticmethod(headtail)

    def __init__(self, config: VideoConfig):
        self.config = config
        self.transform = PixelTransform(config)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.config.num_frames, 3, self.config.image_size, self.config.image_size)

    def load(self, source: Source, mode: ReadMode = EVALUATION) -> Tensor | RawPixels:
        """float32 [T, 3, H, W]; in training raw with ``preprocess_on: device``. Raises MediaError."""
        c = self.config
        with media_errors(source):
            if is_folder(source):
                frames = self._from_folder(Path(source), mode)
            else:
                frames = read_frames(
                    source, lambda count: self.indices(count, mode), c.max_pixels, c.read_seconds, c.max_side
                )
            return self.transform(frames, mode)

    def blank(self) -> Tensor:
        """`num_frames` black frames, normalised like any other."""
        size = self.config.image_size
        return self.transform([np.zeros((size, size, 3), np.uint8)] * self.config.num_frames, EVALUATION)

    def indices(self, frames: int, mode: ReadMode = EVALUATION) -> list[int]:
        """Which frames of a video file of `frames` frames are taken, first to last."""
        c = self.config
        rule = c.train_sampling if isinstance(mode, Training) else c.eval_sampling
        if rule == "uniform":
            return self.uniform(frames, c.num_frames)
        if rule == "headtail":
            return self.headtail(frames, c.num_frames, mode.rng)
        return pick(frame_groups(frames, c.num_frames), mode)

    def _from_folder(self, folder: Path, mode: ReadMode) -> list[np.ndarray]:
        names = frame_names(folder)
        chosen = pick(frame_groups(len(names), self.config.num_frames), mode)
        return [self.transform.read(folder / names[i], mode) for i in chosen]


def frame_names(folder: Path) -> list[str]:
    """The pictures of a folder of frames in name order; not what a system hides among them, nor pipes and the like.

    Raises:
        MediaError: when there is none. OSError: as `os.scandir`.
    """
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if entry.name[0] != "." and entry.name.lower().endswith(IMAGE_EXTENSIONS) and entry.is_file()
        )
    if not names:
        raise MediaError(str(folder), "is a folder without frames (" + ", ".join(IMAGE_EXTENSIONS) + ")")
    return names
