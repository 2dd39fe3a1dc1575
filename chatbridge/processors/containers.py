"""Is a file as long as it says it is?

Decoders differ in what they make of a cut-off download: one raises, one repeats the last picture, one returns the
part that is there without a word. The three container families below state their lengths in their headers, so a
look at a few bytes tells before any decoder is asked.
Sources: ISO/IEC 14496-12 (boxes), RFC 8794 (EBML), the RIFF specification.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from chatbridge.processors.base import MediaError, Source, name_of, readable

ISO_STARTS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
EBML_HEADER = 0x1A45DFA3
EBML_SEGMENT = 0x18538067
STREAMED_RIFF = 0x7FFFF000
"""Writers to a pipe cannot know the length and leave a number from here up (or zero)."""


FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,wav,w64,flac,mp3,aac,aiff,au,caf,amr,"
    "ac3,eac3,gif,m4v,h264,hevc,ivf,mxf,rm,nut"
)
"""FFmpeg's names of containers that hold sound or pictures themselves. Not among them: playlists (concat, hls, dash),
which, under any name, make it open other files and addresses."""


def open_container(opened: str | BinaryIO, headers_only: bool = False) -> Any:
    """What PyAV makes of a sound or video file (or stream), by its content.

    Args:
        headers_only: do not decode the first frames to see what they are: a sixth of the time. What the file's headers
            do not tell (in some formats, the size of frames) is 0 then, and nothing can be decoded.

    Raises:
        av.error.FFmpegError: when it is damaged, or of none of `FORMATS`.
    """
    import av

    options = {"format_whitelist": FORMATS}
    if headers_only:
        options["codec_whitelist"] = "none"
    return av.open(opened, options=options)


def check_whole(source: Source) -> None:
    """Refuse a MP4/MOV, Matroska/WebM or WAV file that is shorter than its header says. Other files pass.

    Raises:
        MediaError: when the file is missing, empty, or cut off.
    """
    opened = readable(source)
    with open(opened, "rb") if isinstance(opened, str) else opened as stream:
        total = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        head = stream.read(12)
        stream.seek(0)
        if head[4:8] in ISO_STARTS:
            problem = _iso_problem(stream, total)
        elif head[:4] == EBML_HEADER.to_bytes(4, "big"):
            problem = _ebml_problem(stream, total)
        elif head[:4] == b"RIFF" and head[8:] == b"WAVE":
            problem = _riff_problem(stream, total)
        else:
            problem = None
    if problem:
        raise MediaError(name_of(source), f"is truncated: {problem}")


def _iso_problem(stream: BinaryIO, total: int) -> str | None:
    seen, at = set(), 0
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
        if at + size > total:
            return f"its part '{_ascii(kind)}' is {size} bytes long, {total - at} are there"
        at += size
    return None if b"moov" in seen else "it has no index ('moov'), which such files often keep at their end"


def _ebml_problem(stream: BinaryIO, total: int) -> str | None:
    kind, size = _ebml_number(stream, keep_marker=True), _ebml_number(stream)
    if kind != EBML_HEADER or size is None:
        return None
    stream.seek(size, io.SEEK_CUR)
    kind, size = _ebml_number(stream, keep_marker=True), _ebml_number(stream)
    here = stream.tell()
    if kind != EBML_SEGMENT or size is None or here + size <= total:
        return None
    return f"its segment is {size} bytes long, {total - here} are there"


def _ebml_number(stream: BinaryIO, keep_marker: bool = False) -> int | None:
    """A number of 1 to 8 bytes whose leading zero bits tell how many; None for "unknown" (all ones) or no bytes."""
    first = stream.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + stream.read(length - 1), "big")
    if keep_marker:
        return value
    value &= (1 << (7 * length)) - 1
    return None if value == (1 << (7 * length)) - 1 else value


def _riff_problem(stream: BinaryIO, total: int) -> str | None:
    at = 12
    while at + 8 <= total:
        stream.seek(at)
        kind, size = stream.read(4), int.from_bytes(stream.read(4), "little")
        if kind == b"data":
            if size < STREAMED_RIFF and at + 8 + size > total:
                return f"it announces {size} bytes of sound, {total - at - 8} are there"
            return None
        at += 8 + size + size % 2
    return "it has no sound part ('data')"


def _ascii(kind: bytes) -> str:
    return kind.decode("ascii", "replace")
