"""A picture file as an array [H, W, 3]."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from chatbridge.common.documents import irregular
from chatbridge.processors.base import Blob, MediaError, Source, name_of, readable, reading
from chatbridge.processors.grey_levels import eight_bits, is_deep
from chatbridge.processors.jpeg_files import (
    START,
    JpegHeader,
    count_scans,
    decode_plain,
    jpeg_header,
    scans_problem,
)
from chatbridge.processors.time_limit import AT_ONCE_PIXELS, PICTURE_SECONDS, within

MAX_PIXELS = 80_000_000
MAX_SIDE = 65_535
"""What is allowed by default. JPEG knows no longer side. Of two pictures with as many pixels, the longer one takes more
memory to resize: made 224 wide first, one of 1 x 80,000,000 has 18 thousand million."""

AT_FIRST, MOST_BYTES = 1 << 16, 1 << 28
"""Bytes of any file that are read at once, and of a JPEG that is read whole."""

BAND = 1 << 22
"""Pixels that transparency is laid on white of at once."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the tag that tells how the camera was held."""


def read_rgb(
    source: Source,
    max_pixels: int,
    compat: str = "default",
    side: int | None = None,
    max_side: int = MAX_SIDE,
    seconds: float = PICTURE_SECONDS,
) -> np.ndarray:
    """A picture file as uint8 [H, W, 3]; of an animation, the first picture.

    By default the camera's rotation tag is obeyed, transparency is laid on white, and grey of more than eight bits is
    scaled (`grey_levels`); with ``compat="original"`` Pillow's plain conversion is used, which does none of the three.

    Args:
        side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as no side falls below so many pixels.
        seconds: that it may take.

    Raises:
        MediaError: when the file is missing, not a picture, truncated, larger than `max_pixels`, longer than `max_side`
            in one direction, of more than `MAX_SCANS` scans, or not decoded in time.
    """
    with reading(source, "cannot be decoded"):
        data = source.data if isinstance(source, Blob) else _jpeg_bytes(source)
        picture = _Picture(source, data, jpeg_header(data), max_pixels, max_side, compat, side)
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
    compat: str
    side: int | None

    @property
    def is_quick(self) -> bool:
        """Whether its kind and size tell that it cannot take long."""
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
        if header is None or header.components not in (1, 3) or (header.described and self.compat != "original"):
            return None
        if self.side is not None and min(header.width, header.height) >= 2 * self.side:
            return None
        return decode_plain(self.data)

    def _decoded_by_pillow(self) -> np.ndarray:
        name = name_of(self.source)
        try:
            with Image.open(io.BytesIO(self.data) if self.data[:2] == START else readable(self.source)) as picture:
                if picture.format == "EPS":
                    raise MediaError(name, "is EPS, for which Pillow would run a program; convert it")
                self._check(*picture.size)
                if self.side is not None:
                    picture.draft(None, (self.side, self.side))
                picture.load()
                self._check(*picture.size)  # an icon's is known only now
                shown = picture if self.compat == "original" else _plain(picture)
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
        return b""  # why, is told when it is tried again
    try:
        found = os.fstat(file)
        if irregular(found) or found.st_size > MOST_BYTES:
            return b""
        data = os.read(file, AT_FIRST)
        if not data.startswith(START):
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
