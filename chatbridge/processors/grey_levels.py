"""Grey pictures of more than eight bits a pixel -> eight bits.

Files say how many bits a value has, hardly ever what white is: twelve bits of a camera in sixteen of a TIFF,
measurements in 32 bits or as floats from 0 to 1. The rule, which looks at the values:

- White is the largest number of the smallest range that holds the largest value of the picture: of 8, 16 and 31 or 32
  bits for whole numbers (16 bits stay 16), of 1 and of 8, 16 and 32 bits for floats, which may overshoot by a tenth.
- Where the picture uses less than a sixteenth of that range (twelve bits in sixteen), it is the next power of two, lest
  all of it be black.
- With values below zero, its smallest value is black and its largest white.
- What is not a number is black, and so is minus infinity; plus infinity is white.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

UNUSED = 16
OVERSHOOT = 1.1
SAMPLE_FORMAT, UNSIGNED = 339, 1
"""TIFF's tag that distinguishes numbers below zero from large ones."""


def is_deep(picture: Image.Image) -> bool:
    """Whether this is for `eight_bits`."""
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def eight_bits(picture: Image.Image) -> Image.Image:
    """A grey picture of mode I, F or I;16 (and its kin) as mode L."""
    values = np.asarray(picture)
    tags = getattr(picture, "tag_v2", None)
    if picture.mode == "I" and tags is not None and tags.get(SAMPLE_FORMAT, UNSIGNED) in (UNSIGNED, (UNSIGNED,)):
        values = values.view(np.uint32)  # Pillow has no mode for them: those from 2 ** 31 up came in as below zero
    levels = _of_floats(values) if picture.mode == "F" else _of_integers(values, picture.mode != "I")
    return Image.fromarray(levels)


def _of_integers(values: np.ndarray, sixteen: bool) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0:
        return _stretched(values, low, high)
    whole = 31 if values.dtype.kind == "i" else 32
    bits = 16 if sixteen else next(bits for bits in (8, 16, whole) if high < 1 << bits)
    if bits > 8 and high < (1 << bits) // UNUSED:
        bits = max(8, high.bit_length())
    return (values >> (bits - 8)).astype(np.uint8)


def _of_floats(values: np.ndarray) -> np.ndarray:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if low >= 0:
        low = 0.0
        ranges = (1.0, 255.0, 65535.0, 2.0**31 - 1, 2.0**32 - 1)
        white = next((top for top in ranges if high <= top * OVERSHOOT), high)
        high = white if high >= white / UNUSED or not high else 2.0 ** math.ceil(math.log2(high))
    return _stretched(np.nan_to_num(values, nan=low, posinf=high, neginf=low), low, high)


def _stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """`low` becomes 0, `high` 255; a block of rows at a time, which keeps what is large in between small."""
    levels = np.zeros(values.shape, np.uint8)
    if high > low:
        rows = max(1, (1 << 20) // max(1, values.shape[1]))
        for top in range(0, len(values), rows):
            part = values[top : top + rows].astype(np.float64)
            levels[top : top + rows] = np.rint(np.clip((part - low) * (255 / (high - low)), 0, 255))
    return levels
