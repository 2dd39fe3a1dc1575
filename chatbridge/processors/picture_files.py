"""A picture file as an array [H, W, 3]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from chatbridge.processors.base import Blob, MediaError, Source, name_of, readable
from chatbridge.processors.jpeg_files import START, decode_plain, jpeg_header


def read_rgb(source: Source, max_pixels: int, compat: str = "default", side: int | None = None) -> np.ndarray:
    """A picture file as uint8 [H, W, 3]; of an animation, the first picture.

    By default the camera's rotation tag is obeyed, transparency is laid on white, and 16-bit grey is scaled; with
    ``compat="original"`` Pillow's plain conversion is used, which does none of the three.

    Args:
        side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as no side falls below so many pixels.

    Raises:
        MediaError: when the file is missing, not a picture, truncated, or larger than `max_pixels`.
    """
    try:
        array = _plain_jpeg(source, max_pixels, compat, side)
        return array if array is not None else _with_pillow(source, max_pixels, compat, side)
    except MediaError:
        raise
    except UnidentifiedImageError as error:
        raise MediaError(name_of(source), "is not a picture in any format that Pillow reads") from error
    except Exception as error:
        # Pillow's decoders raise anything from OSError to struct.error on damaged files; for us it is one thing.
        raise MediaError(name_of(source), f"cannot be decoded ({error or type(error).__name__})") from error


def _plain_jpeg(source: Source, max_pixels: int, compat: str, side: int | None) -> np.ndarray | None:
    """Decoded in the quick way, where there is one that gives what Pillow would; else None."""
    data = source.data if isinstance(source, Blob) else _jpeg_bytes(source)
    header = jpeg_header(data)
    if header is None or header.components not in (1, 3) or (header.described and compat != "original"):
        return None
    if side is not None and min(header.width, header.height) >= 2 * side:
        return None
    _check_size(source, header.width, header.height, max_pixels)
    return decode_plain(data)


def _jpeg_bytes(path: str | Path) -> bytes:
    """All of a file that begins as a JPEG does, of others the beginning; nothing of one that cannot be opened."""
    try:
        with open(path, "rb", buffering=0) as file:
            start = file.read(len(START))
            return start + file.readall() if start == START else start
    except (OSError, ValueError):
        return b""  # why, is told when it is tried again


def _with_pillow(source: Source, max_pixels: int, compat: str, side: int | None) -> np.ndarray:
    with Image.open(readable(source)) as picture:
        _check_size(source, *picture.size, max_pixels)
        if side is not None:
            picture.draft(None, (side, side))
        return np.array(picture.convert("RGB") if compat == "original" else _upright_rgb(picture))


def _check_size(source: Source, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise MediaError(name_of(source), f"has {width} x {height} pixels, more than max_pixels = {max_pixels} allows")


def _upright_rgb(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")
