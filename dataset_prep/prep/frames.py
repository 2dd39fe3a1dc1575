"""Frames of videos as JPEG files, chosen by number or by time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from chatbridge.common.read_mode import EVALUATION
from chatbridge.processors.base import MediaError, media_errors, readable
from chatbridge.processors.containers import check_whole, decodable, open_container
from chatbridge.processors.picture_files import MAX_PIXELS, check_size
from chatbridge.processors.sampling import frame_groups, pick
from chatbridge.processors.time_limit import READ_SECONDS, within
from chatbridge.processors.video_files import UNREADABLE, read_frames

LONGEST_STILL = 3600.0
"""Seconds; longer ones are of damaged time stamps, and would fill the disk with one picture."""


def write_frames(
    video: Path, folder: Path, count: int = 0, fps: float = 0.0, size: int = 256, quality: int = 90
) -> int:
    """Write frames ``00000.jpg`` ... of a video into a folder that appears when all are there; returns how many.

    Args:
        count: this many, the middle ones of equal parts of the video (all, where it has no more frames).
        fps: instead, the frame that is shown at every 1/fps seconds, by the video's time stamps: right also where
            the frame rate varies.
        size: pixels of the shorter side; a smaller video stays as it is; 0 keeps every size.

    Raises:
        MediaError: a video that cannot be read.
    """
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    number = 0
    try:
        frames = by_time(video, fps) if fps else iter(by_number(video, count))
        while (frame := within(READ_SECONDS, str(video), next, frames, None)) is not None:
            picture = shrink(Image.fromarray(np.ascontiguousarray(frame)), size)
            picture.save(temporary / f"{number:05d}.jpg", quality=quality)
            number += 1
        if not number:
            raise MediaError(str(video), "has no frames")
        shutil.rmtree(folder, ignore_errors=True)  # of a run with other settings, or one that was killed
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return number


def by_number(video: Path, count: int) -> list[np.ndarray]:
    """The middle frames of `count` equal parts, uint8 [H, W, 3] each; every frame of a shorter video."""
    return read_frames(video, lambda frames: pick(frame_groups(frames, min(count, frames)), EVALUATION), MAX_PIXELS)


def by_time(video: Path, fps: float) -> Iterator[np.ndarray]:
    """The frames on show at 0, 1/fps, 2/fps ... seconds, uint8 [H, W, 3] each."""
    with media_errors(video, UNREADABLE):
        check_whole(video)
        with open_container(readable(video)) as container:
            tracks = decodable(container.streams.video)
            if not tracks:
                raise MediaError(str(video), "has no picture track that can be decoded")
            context = tracks[0].codec_context
            check_size(str(video), context.width, context.height, MAX_PIXELS, what="has frames of")
            wanted, start, shown = 0, None, None
            for frame in container.decode(tracks[0]):
                start = frame.time if start is None else start
                if shown is not None and frame.time - shown.time > LONGEST_STILL:
                    raise MediaError(str(video), f"has a frame that is on show for {frame.time - shown.time:.0f} s")
                # Until this frame comes, the one before it is on show.
                while shown is not None and wanted / fps < frame.time - start - 1e-6:
                    yield _upright(shown)
                    wanted += 1
                shown = frame
            if shown is not None and wanted / fps <= shown.time - start + 1e-6:
                yield _upright(shown)


def shrink(picture: Image.Image, size: int) -> Image.Image:
    """The picture with its shorter side at most `size` pixels."""
    short = min(picture.size)
    if not size or short <= size:
        return picture
    width, height = (max(1, round(side * size / short)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _upright(frame: object) -> np.ndarray:
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
