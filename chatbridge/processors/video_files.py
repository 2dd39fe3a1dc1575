"""Chosen frames of a video file, by decord; by PyAV where decord cannot.

decord seeks quickly, and has three weaknesses that are dealt with here, before or after it is asked:
it allocates as many entries as a damaged header announces frames (and then ends the whole process), it crashes on
damaged files that are read from memory, and it cannot return frames of some widths below 80 pixels.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from functools import partial

import numpy as np

from chatbridge.processors.base import Blob, MediaError, Source, media_errors, name_of, readable, reason_of, suffix_of
from chatbridge.processors.containers import NO_DECODER, check_whole, decodable, open_container
from chatbridge.processors.picture_files import MAX_SIDE, check_size
from chatbridge.processors.time_limit import READ_SECONDS, within

Chooser = Callable[[int], list[int]]
"""From the number of frames of a video to the indices of those wanted, in ascending order."""

SizeCheck = Callable[[int, int], None]
"""Raises MediaError for a width and height that are too large."""

UNREADABLE = "is not a readable video"


def read_frames(
    source: Source, choose: Chooser, max_pixels: int, seconds: float = READ_SECONDS, max_side: int = MAX_SIDE
) -> list[np.ndarray]:
    """The chosen frames, each uint8 [H, W, 3], in the order of `choose`, which may repeat an index.

    Raises:
        MediaError: missing, empty, truncated or damaged file, no picture track, none that can be decoded, no frames,
            frames larger than `max_pixels` or with a side longer than `max_side`, or one that is not decoded within
            `seconds`.
    """
    with media_errors(source, UNREADABLE):
        check = partial(check_size, name_of(source), max_pixels=max_pixels, max_side=max_side, what="has frames of")
        if not isinstance(source, Blob):
            return within(seconds, name_of(source), _read, source, readable(source), choose, check)
        ending = suffix_of(source)
        with tempfile.NamedTemporaryFile(suffix=ending if re.fullmatch(r"\.\w{1,8}", ending, re.ASCII) else "") as file:
            file.write(source.data)
            file.flush()
            return within(seconds, source.name, _read, source, file.name, choose, check)


def _read(source: Source, path: str, choose: Chooser, check: SizeCheck) -> list[np.ndarray]:
    check_whole(source)
    _probe(source, path, check)
    try:
        return _with_decord(path, choose, check)
    except MediaError:
        raise
    except Exception as error:
        # DECORDError or RuntimeError, for a damaged file as for a width or codec that decord does not know.
        reason = error
    try:
        return _with_av(path, choose, check)
    except MediaError:
        raise
    except Exception:
        raise MediaError(name_of(source), f"{UNREADABLE} ({reason_of(reason)})") from reason


def _probe(source: Source, path: str, check: SizeCheck) -> None:
    """What the file's header says, read by PyAV, which survives what decord does not."""
    for headers_only in (True, False):
        with open_container(path, headers_only) as container:
            everything = container.streams.video
            tracks = decodable(everything)
            sizes = [(track.codec_context.width, track.codec_context.height) for track in tracks]
            frames = max((track.frames for track in tracks), default=0)
        if tracks and all(width and height for width, height in sizes):
            break
    if not tracks:
        raise MediaError(name_of(source), NO_DECODER.format("picture") if everything else "has no picture track")
    if frames > os.stat(path).st_size:
        raise MediaError(name_of(source), f"is damaged: its header announces {frames} frames, more than it has bytes")
    for width, height in sizes:
        check(width, height)


def _with_decord(path: str, choose: Chooser, check: SizeCheck) -> list[np.ndarray]:
    import decord  # loads a whole FFmpeg: not for those who only look at pictures

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    if len(reader) == 0:
        raise ValueError("it has no frames")
    frames = list(reader.get_batch(choose(len(reader))).asnumpy())
    for frame in frames[:1]:
        check(*frame.shape[1::-1])  # headers may be wrong
    return frames


def _with_av(path: str, choose: Chooser, check: SizeCheck) -> list[np.ndarray]:
    """From the start to the last frame wanted: slower on long videos, but it knows every width and codec."""
    with open_container(path) as container:
        track = decodable(container.streams.video)[0]
        count = sum(packet.size > 0 for packet in container.demux(track))
    wanted = choose(count)
    kept = {}
    with open_container(path) as container:
        for index, frame in enumerate(container.decode(decodable(container.streams.video)[0])):
            if index in wanted:
                check(frame.width, frame.height)
                # A phone held upright films lying frames and says so; decord obeys by itself.
                kept[index] = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
            if index >= wanted[-1]:
                break
    return [kept[index] for index in wanted]
