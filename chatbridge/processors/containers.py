"""Is a file as long as it says it is?

Decoders differ in what they make of a cut-off download: one raises, one repeats the last picture, one returns the
part that is there without a word. The three container families below state their lengths in their headers, so a
look at a few bytes suffices, before any decoder is used.
Sources: ISO/IEC 14496-12 (boxes), RFC 8794 (EBML), the RIFF specification.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any, BinaryIO

from chatbridge.common.documents import open_regular
from chatbridge.processors.base import Blob, MediaError, Source, name_of, readable
from chatbridge.processors.time_limit import AT_ONCE_BYTES

ISO_STARTS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
EBML_HEADER = 0x1A45DFA3
EBML_SEGMENT = 0x18538067
STREAMED_RIFF = 0x7FFFF000
"""Writers to a pipe cannot know the length and leave a number from here up (or zero)."""
EXTENSIBLE, STORED = b"\xfe\xff", (b"\x01\x00", b"\x03\x00")
"""WAV's numbers of formats: one that stands further on; whole numbers and floats."""

MOST_PARTS = 1_000_000
"""Of a file, one after the other: looking at their headers takes a second. A live recording has one each second."""
TOO_MANY_PARTS = f"has more than {MOST_PARTS:,} parts"

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,wav,w64,flac,mp3,aac,aiff,au,caf,amr,"
    "ac3,eac3,gif,m4v,h264,hevc,ivf,mxf,rm,nut"
)
"""FFmpeg's names of containers that hold sound or pictures themselves. Not among them: playlists (concat, hls, dash),
which, under any name, make it open other files and addresses."""


NO_SOUND = "has no sound track"
NO_DECODER = "has a {} track in a codec that cannot be decoded here"


def open_container(opened: str | BinaryIO, headers_only: bool = False, formats: str = FORMATS) -> Any:
    """What PyAV makes of a sound or video file (or stream), by its content.

    Args:
        headers_only: do not decode the first frames to see what they are: a sixth of the time. What the file's headers
            do not say (in some formats, the size of frames) is 0 then, and nothing can be decoded.

    Raises:
        av.error.FFmpegError: when it is damaged, or of none of `formats`.
    """
    import av

    options = {"format_whitelist": formats}
    if headers_only:
        options["codec_whitelist"] = "none"
    # Titles are often in the writer's own encoding; what they say does not matter here.
    return av.open(opened, options=options, metadata_errors="replace")


def decodable(tracks: Iterable[Any]) -> list[Any]:
    """Those of a container's tracks whose codec has a decoder here: Apple's 'apac', beside the AAC of recent phones'
    videos, has none; nor has what a damaged header names."""
    return [track for track in tracks if track.codec_context is not None]


def pictures(container: Any) -> list[Any]:
    """A container's tracks of moving pictures: the cover of a record is not one."""
    from av.stream import Disposition

    return [track for track in container.streams.video if not track.disposition & Disposition.attached_pic]


def sound_problem(source: Source) -> str | None:
    """Why nothing can be heard of a video or sound, in words for an error; None where something can.

    Raises:
        MediaError: no such file, or an empty one. Others: as decoders do, where it is damaged.
    """
    from av.error import FFmpegError

    for number in count():
        with open_container(readable(source)) as container:
            tracks = decodable(container.streams.audio)
            if not tracks:
                return NO_DECODER.format("sound") if container.streams.audio else NO_SOUND
            with suppress(FFmpegError):
                if any(frame.samples for frame in container.decode(tracks[number])):
                    return None
            if number == len(tracks) - 1:
                return "has a sound track of which nothing can be decoded"
    raise AssertionError("there is a last track")


def check_whole(source: Source) -> bool:
    """Refuse a MP4/MOV, Matroska/WebM or WAV file that is shorter than its header says. Other files pass.

    Returns:
        whether it is a WAV that holds its samples as such, so that reading it is copying.

    Raises:
        MediaError: when the file is missing, empty, cut off, or of so many parts that it takes too long to look at all.
    """
    plain, problem = False, None
    with _opened(source) as stream:
        total = _size(stream)
        if not total:
            readable(source)  # says so
        head = stream.read(12)
        stream.seek(0)
        if head[4:8] in ISO_STARTS:
            problem = _iso_problem(stream, total)
        elif head[:4] == EBML_HEADER.to_bytes(4, "big"):
            problem = _ebml_problem(stream, total)
        elif _is_wav(head):
            plain, problem = _wav_problem(stream, total)
    if problem:
        raise MediaError(name_of(source), problem)
    return plain


def lacks_length(source: Source) -> bool:
    """Whether this is a WAV that says it has no bytes of sound, and has some: it was written to a pipe, by somebody who
    could not go back and put in how many there were.

    A WAV of no sound may go on behind it, but then in parts that have their length in front.
    """
    with _opened(source) as stream:
        total = _size(stream)
        if not _is_wav(stream.read(12)):
            return False
        parts = {kind: (at, size) for kind, at, size in _riff_parts(stream, total, 12)}
        begin, size = parts.get(b"data", (total, 0))
        if size or begin >= total:
            return False
        end = begin
        for kind, at, size in _riff_parts(stream, total, begin):
            if not all(32 <= letter < 127 for letter in kind):
                return True
            end = at + size
        return end not in (total, total - 1, total + 1)  # an odd one may be filled up by a byte, or should have been


def _opened(source: Source) -> BinaryIO:
    if isinstance(source, Blob):
        return readable(source)
    try:
        return open_regular(source)
    except (OSError, ValueError):
        readable(source)  # says why
        raise


def _size(stream: BinaryIO) -> int:
    return len(stream.getbuffer()) if isinstance(stream, io.BytesIO) else os.fstat(stream.fileno()).st_size


def _is_wav(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WAVE"


def _iso_problem(stream: BinaryIO, total: int) -> str | None:
    seen, at, parts = set(), 0, 0
    while at + 8 <= total:
        stream.seek(at)
        size, kind = int.from_bytes(stream.read(4), "big"), stream.read(4)
        if size == 1:
            size = int.from_bytes(stream.read(8), "big")
        elif size == 0:
            size = total - at
        if size < 8:
            break
        seen.add(kind)
        parts += 1
        if parts > MOST_PARTS:
            return TOO_MANY_PARTS
        if at + size > total:
            return f"is truncated: its part '{_ascii(kind)}' is {size} bytes long, {total - at} are there"
        at += size
    if b"moov" not in seen:
        return "is truncated: it has no index ('moov'), which such files often keep at their end"
    return None


def _ebml_problem(stream: BinaryIO, total: int) -> str | None:
    kind, size = _ebml_number(stream, keep_marker=True), _ebml_number(stream)
    if kind != EBML_HEADER or size is None:
        return None
    stream.seek(size, io.SEEK_CUR)
    kind, size = _ebml_number(stream, keep_marker=True), _ebml_number(stream)
    here = stream.tell()
    if kind != EBML_SEGMENT or size is None or here + size <= total:
        return None
    return f"is truncated: its segment is {size} bytes long, {total - here} are there"


def _ebml_number(stream: BinaryIO, keep_marker: bool = False) -> int | None:
    """A number of 1 to 8 bytes whose leading zero bits say how many; None for "unknown" (all ones) or no bytes."""
    first = stream.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + stream.read(length - 1), "big")
    if keep_marker:
        return value
    value &= (1 << (7 * length)) - 1
    return None if value == (1 << (7 * length)) - 1 else value


def _wav_problem(stream: BinaryIO, total: int) -> tuple[bool, str | None]:
    """Whether it holds its samples as such, and what is wrong with it."""
    plain = False
    for number, (kind, at, size) in enumerate(_riff_parts(stream, total, 12)):
        if kind == b"fmt ":
            stream.seek(at)
            form = stream.read(26)
            form = form[24:] if form[:2] == EXTENSIBLE else form[:2]
            plain = form in STORED and total <= AT_ONCE_BYTES
        elif kind == b"data":
            if size < STREAMED_RIFF and at + size > total:
                return plain, f"is truncated: it announces {size} bytes of sound, {total - at} are there"
            return plain, None
        elif number > MOST_PARTS:
            return plain, TOO_MANY_PARTS
    return plain, "is truncated: it has no sound part ('data')"


def _riff_parts(stream: BinaryIO, total: int, at: int) -> Iterator[tuple[bytes, int, int]]:
    """Of each part from a place on: its name, where it begins behind its header, and how long it says it is."""
    for _ in range(MOST_PARTS + 2):
        if at + 8 > total:
            return
        stream.seek(at)
        kind, size = stream.read(4), int.from_bytes(stream.read(4), "little")
        yield kind, at + 8, size
        at += 8 + size + size % 2


def _ascii(kind: bytes) -> str:
    return kind.decode("ascii", "replace")
