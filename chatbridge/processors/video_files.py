"""Chosen frames of a video file, by decord; by PyAV where decord cannot.

decord seeks quickly, and has three weaknesses that are dealt with here, before or after it is asked:
it allocates as many entries as a damaged header announces frames (and then ends the whole process), it crashes on
damaged files that are read from memory, and it cannot return frames of some widths below 80 pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from chatbridge.processors.base import Blob, MediaError, Source, name_of, suffix_of
from chatbridge.processors.containers import check_whole, open_container
from chatbridge.processors.time_limit import READ_SECONDS, within

Chooser = Callable[[int], list[int]]
"""From the number of frames of a video to the indices of those wanted, in ascending order."""


def read_frames(source: Source, choose: Chooser, max_pixels: int, seconds: float = READ_SECONDS) -> list[np.ndarray]:
    """The chosen frames, each uint8 [H, W, 3], in the order of `choose`, which may repeat an index.

    Raises:
        MediaError: missing, empty, truncated or damaged file, no picture track, no frames, frames larger than
            `max_pixels`, or one that is not decoded within `seconds`.
    """
    check_whole(source)
    if isinstance(source, Blob):
        with tempfile.NamedTemporaryFile(suffix=suffix_of(source)) as file:
            file.write(source.data)
            file.flush()
            return within(seconds, source.name, _read, file.name, source.name, choose, max_pixels)
    return within(seconds, name_of(source), _read, str(source), name_of(source), choose, max_pixels)


def _read(path: str, name: str, choose: Chooser, max_pixels: int) -> list[np.ndarray]:
    try:
        _probe(path, name, max_pixels)
    except MediaError:
        raise
    except Exception as error:
        raise _unreadable(name, error) from error
    frames = _decoded(path, name, choose)
    if frames:
        _check_size(name, *frames[0].shape[1::-1], max_pixels)  # headers may be wrong
    return frames


def _decoded(path: str, name: str, choose: Chooser) -> list[np.ndarray]:
    try:
        return _with_decord(path, choose)
    except Exception as error:
        # DECORDError or RuntimeError, for a damaged file as for a width or codec that decord does not know.
        reason = error
    try:
        return _with_av(path, choose)
    except Exception:
        raise _unreadable(name, reason) from reason


def _probe(path: str, name: str, max_pixels: int) -> None:
    """What the file's header says, read by PyAV, which survives what decord does not."""
    for headers_only in (True, False):
        with open_container(path, headers_only) as container:
            track = next(iter(container.streams.video), None)
            width, height = (0, 0) if track is None else (track.codec_context.width, track.codec_context.height)
            frames = 0 if track is None else track.frames
        if width and height:
            break
    if track is None:
        raise MediaError(name, "has no picture track")
    if frames > Path(path).stat().st_size:
        raise MediaError(name, f"is damaged: its header announces {frames} frames, more than it has bytes")
    _check_size(name, width, height, max_pixels)


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise MediaError(name, f"has frames of {width} x {height} pixels, more than max_pixels = {max_pixels} allows")


def _with_decord(path: str, choose: Chooser) -> list[np.ndarray]:
    import decord  # loads a whole FFmpeg: not for those who only look at pictures

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    if len(reader) == 0:
        raise ValueError("it has no frames")
    return list(reader.get_batch(choose(len(reader))).asnumpy())


def _with_av(path: str, choose: Chooser) -> list[np.ndarray]:
    """From the start to the last frame wanted: slower on long videos, but it knows every width and codec."""

    with open_container(path) as container:
        track = container.streams.video[0]
        count = sum(packet.size > 0 for packet in container.demux(track))
    wanted = choose(count)
    kept = {}
    with open_container(path) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                # A phone held upright films lying frames and says so; decord obeys by itself.
                kept[index] = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
            if index >= wanted[-1]:
                break
    return [kept[index] for index in wanted]


def _unreadable(name: str, error: Exception) -> MediaError:
    # Both decoders put addresses, paths or pages of native backtrace into their messages; the first line tells.
    reason = str(error).strip().split("\n")[0].split("Check failed: ")[-1] or type(error).__name__
    return MediaError(name, f"is not a readable video ({reason})")
