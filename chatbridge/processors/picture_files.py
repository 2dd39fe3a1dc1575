"""A picture file as an array [H, W, 3]; of JPEG files also the header, the scans and the end (source: ITU-T T.81)."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from chatbridge.common.documents import irregular
from chatbridge.processors.base import Blob, MediaError, Source, media_errors, name_of, readable
from chatbridge.processors.grey_levels import eight_bits, is_deep
from chatbridge.processors.time_limit import AT_ONCE_PIXELS, PICTURE_SECONDS, within

MAX_PIXELS = 80_000_000
MAX_SIDE = 65_535
"""What is allowed by default. JPEG knows no longer side. Of two pictures with as many pixels, the longer one takes more
memory to resize: made 224 wide first, one of 1 x 80,000,000 has 18 thousand million."""

AT_FIRST, MOST_BYTES = 1 << 16, 1 << 28
"""Bytes of any file that are read at once, and of a JPEG that is read whole."""

BAND = 1 << 22
"""Pixels that transparency is laid on white of at once."""

JPEG_FRAMES = (0xC0, 0xC1, 0xC2)
"""Markers of the frames that every decoder knows: baseline, extended, progressive."""

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
"""Markers that a file begins and ends with."""

MAX_SCANS, MOST_SCANNED = 100, 1_600_000_000
"""Of a progressive picture: scans, and pixels of all scans (20 of the largest picture). Encoders write about ten; each
costs as much as the whole picture, and needs few bytes."""

_SCAN = b"\xff\xda"
_MARKER = re.compile(b"\xff+[^\x00\x01\xd0-\xd7\xff]")
"""What ends the bytes of pixels: not an 0xFF that is one of them (a zero follows), nor a mark to begin afresh at."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the tag that says how the camera was held."""


def read_rgb(
    source: Source,
    max_pixels: int,
    side: int | None = None,
    max_side: int = MAX_SIDE,
    seconds: float = PICTURE_SECONDS,
    as_stored: bool = False,
) -> np.ndarray:
    """A picture file as uint8 [H, W, 3]; of an animation, the first picture.

    The camera's rotation tag is obeyed, transparency is laid on white, and grey of more than eight bits is scaled
    (`grey_levels`).

    Args:
        side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as no side falls below so many pixels.
        seconds: that it may take.
        as_stored: none of the three: Pillow's plain conversion.

    Raises:
        MediaError: when the file is missing, not a picture, truncated, larger than `max_pixels`, longer than `max_side`
            in one direction, of more than `MAX_SCANS` scans, or not decoded in time.
    """
    with media_errors(source, "cannot be decoded"):
        data = source.data if isinstance(source, Blob) else _jpeg_bytes(source)
        picture = _Picture(source, data, jpeg_header(data), max_pixels, max_side, as_stored, side)
        if picture.is_quick:
            return picture.decoded()
        return within(seconds, name_of(source), picture.decoded)


def check_size(
    name: str, width: int, height: int, max_pixels: int, max_side: int = MAX_SIDE, what: str = "has"
) -> None:
    """Raise MediaError for a picture or frame that is too large."""
    if width * height > max_pixels:
        raise MediaError(name, f"{what} {width} x {height} pixels, more than max_pixels = {max_pixels} allows")
    if max(width, height) > max_side:
        raise MediaError(name, f"{what} {width} x {height} pixels, a longer side than max_side = {max_side} allows")


@dataclass(slots=True)
class _Picture:
    """A picture to be decoded: its bytes and header, where it is a JPEG, and the arguments of `read_rgb`."""

    source: Source
    data: bytes
    header: JpegHeader | None
    max_pixels: int
    max_side: int
    as_stored: bool
    side: int | None

    @property
    def is_quick(self) -> bool:
        """Whether it cannot take long, by its kind and size."""
        if self.header is None:
            return False
        scans = 1 if self.header.plain else count_scans(self.data)
        return self.header.width * self.header.height * scans <= AT_ONCE_PIXELS

    def decoded(self) -> np.ndarray:
        header = self.header
        if header is not None:
            self._check(header.width, header.height)
        if header is None or not header.plain:
            problem = scans_problem(self.data, header.width * header.height if header else 0)
            if problem:
                raise MediaError(name_of(self.source), problem)
        pixels = self._decoded_plainly()
        return self._decoded_by_pillow() if pixels is None else pixels

    def _decoded_plainly(self) -> np.ndarray | None:
        """The quick way, where there is one that gives what Pillow would; else None."""
        header = self.header
        if header is None or header.components not in (1, 3) or (header.described and not self.as_stored):
            return None
        if self.side is not None and min(header.width, header.height) >= 2 * self.side:
            return None
        return decode_plain(self.data)

    def _decoded_by_pillow(self) -> np.ndarray:
        name = name_of(self.source)
        try:
            with Image.open(io.BytesIO(self.data) if self.data[:2] == JPEG_START else readable(self.source)) as picture:
                if picture.format == "EPS":
                    raise MediaError(name, "is EPS, for which Pillow would run a program; convert it")
                self._check(*picture.size)
                if self.side is not None:
                    picture.draft(None, (self.side, self.side))
                picture.load()
                self._check(*picture.size)  # an icon's is known only now
                shown = picture if self.as_stored else _plain(picture)
                return np.array(shown if shown.mode == "RGB" else shown.convert("RGB"))
        except UnidentifiedImageError as error:
            raise MediaError(name, "is not a picture in any format that Pillow reads") from error

    def _check(self, width: int, height: int) -> None:
        check_size(name_of(self.source), width, height, self.max_pixels, self.max_side)


def _jpeg_bytes(path: str | os.PathLike) -> bytes:
    """All of a file that begins as a JPEG does; nothing of another, or of one that cannot be opened.

    (`open_regular`, without what a file object costs: a fiftieth of the time that decoding takes.)
    """
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError):
        return b""  # the next try raises the reason
    try:
        found = os.fstat(file)
        if irregular(found) or found.st_size > MOST_BYTES:
            return b""
        data = os.read(file, AT_FIRST)
        if not data.startswith(JPEG_START):
            return b""
        return data if len(data) == found.st_size else data + os.read(file, found.st_size)
    except OSError:
        return b""
    finally:
        os.close(file)


def _plain(picture: Image.Image) -> Image.Image:
    """Upright, in eight bits, and without transparency."""
    turn = _turn(picture)
    if is_deep(picture):
        picture = eight_bits(picture)
    if turn is not None:
        picture = picture.transpose(turn)
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        return _on_white(picture)
    return picture


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What makes a picture upright; None where it is, or does not say how it was held in a way that can be read."""
    try:
        return UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # the picture is good all the same
        return None


def _on_white(picture: Image.Image) -> Image.Image:
    laid = Image.new("RGB", picture.size)
    rows = max(1, BAND // picture.width)
    for top in range(0, picture.height, rows):
        layer = picture.crop((0, top, picture.width, min(top + rows, picture.height))).convert("RGBA")
        laid.paste(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"), (0, top))
    return laid


class JpegHeader(NamedTuple):
    """What stands in front of a JPEG's pixels.

    Attributes:
        width, height: in pixels, as stored; components: 1 grey, 3 colour, 4 for print.
        described: whether it has an APP1 part (EXIF, XMP), which may say that the camera was rotated.
        size: bytes in front of the pixels.
        plain: whether all of it is in one scan, so that how long it takes follows from its size.
    """

    width: int
    height: int
    components: int
    described: bool
    size: int
    plain: bool


def jpeg_header(data: bytes | memoryview) -> JpegHeader | None:
    """The header of a JPEG; None for what is none, or of a kind or in a state that is left to a decoder."""
    if data[:2] != JPEG_START:
        return None
    at, end, frame, described, progressive = 2, len(data) - 9, None, False, False
    while at < end and data[at] == 0xFF:
        kind = data[at + 1]
        if kind in JPEG_FRAMES:
            frame, progressive = at + 5, kind == 0xC2
        elif kind == 0xDA:
            if frame is None:
                return None
            height, width = data[frame] << 8 | data[frame + 1], data[frame + 2] << 8 | data[frame + 3]
            components = data[frame + 4]
            return JpegHeader(width, height, components, described, at, not progressive and data[at + 4] == components)
        elif kind == 0xE1:
            described = True
        elif kind < 0xC4 or 0xD0 <= kind <= 0xD9:  # another kind of frame, or nothing that has a length
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def count_scans(data: bytes | memoryview) -> int:
    """How many scans a JPEG has, up to one more than `MAX_SCANS`; 0 for what is none.

    What belongs to the picture is gone through as decoders do; behind its end there may be anything (a film, say).
    """
    if data[:2] != JPEG_START:
        return 0
    most = _pairs(data, *_SCAN)
    if most <= MAX_SCANS:
        return most
    at, scans = 2, 0
    while scans <= MAX_SCANS and (marker := _MARKER.search(data, at)) is not None:
        kind, at = data[marker.end() - 1], marker.end()
        if kind in (0xD8, 0xD9):
            break
        scans += kind == 0xDA
        at += int.from_bytes(data[at : at + 2], "big")
    return scans


def scans_problem(data: bytes | memoryview, pixels: int) -> str | None:
    """Why a JPEG would take far longer than its size suggests, in words for an error; None for any other file."""
    most = max(1, min(MAX_SCANS, MOST_SCANNED // max(1, pixels)))
    if count_scans(data) <= most:
        return None
    return f"has more than {most} progressive scans, each of which is a whole picture to decode"


def _pairs(data: bytes | memoryview, first: int, second: int) -> int:
    """How often two bytes follow each other. (`bytes.count` takes five times as long where the first is frequent.)"""
    values, block = np.frombuffer(data, np.uint8), 1 << 20
    return sum(
        int(np.count_nonzero((part[:-1] == first) & (part[1:] == second)))
        for part in (values[start : start + block + 1] for start in range(0, len(values), block))
    )


def decode_plain(data: bytes | memoryview) -> np.ndarray | None:
    """uint8 [H, W, 3], decoded by torchvision: the same numbers as Pillow's in three quarters of the time.

    (Both are libjpeg-turbo.) None for a file that it refuses.
    """
    try:
        pixels = _decoder()(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except RuntimeError:
        return None
    return pixels.permute(1, 2, 0).numpy()


@cache
def _decoder() -> Callable[[torch.Tensor], torch.Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg  # slow to import

    return partial(decode_jpeg, mode=ImageReadMode.RGB)


def has_end(data: bytes, header: JpegHeader) -> bool:
    """Whether the mark at a JPEG's end is there; behind it there may be anything.

    Among the bytes of its pixels there is no such mark, and an EXIF thumbnail's stands in front of them.
    """
    return data.find(JPEG_END, header.size) >= 0
