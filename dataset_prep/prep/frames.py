"""Frames of videos as JPEG files, chosen by number or by time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from chatbridge.processors.base import MediaError
from chatbridge.processors.containers import check_whole, open_container
from chatbridge.processors.sampling import frame_groups, pick
from chatbridge.processors.video_files import read_frames

MAX_PIXELS = 80_000_000


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
        for frame in by_time(video, fps) if fps else by_number(video, count):
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
    return read_frames(video, lambda frames: pick(frame_groups(frames, min(count, frames)), None), MAX_PIXELS)


def by_time(video: Path, fps: float) -> Iterator[np.ndarray]:
    """The frames on show at 0, 1/fps, 2/fps ... seconds, uint8 [H, W, 3] each."""

    check_whole(video)
    try:
        with open_container(str(video)) as container:
            if not container.streams.video:
                raise MediaError(str(video), "has no picture track")
            wanted, start, shown = 0, None, None
            for frame in container.decode(video=0):
                start = frame.time if start is None else start
                # Until this frame comes, the one before it is on show.
                while shown is not None and wanted / fps < frame.time - start - 1e-6:
                    yield _upright(shown)
                    wanted += 1
                shown = frame
            if shown is not None and wanted / fps <= shown.time - start + 1e-6:
                yield _upright(shown)
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(str(video), f"is not a readable video ({str(error).splitlines()[0]})") from error


def shrink(picture: Image.Image, size: int) -> Image.Image:
    """The picture with its shorter side at most `size` pixels."""
    short = min(picture.size)
    if not size or short <= size:
        return picture
    width, height = (max(1, round(side * size / short)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _upright(frame: object) -> np.ndarray:
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
