"""JPEG files: what their headers say, whether their end is there, and a decoder for the plain ones.

Source: ITU-T T.81.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch

FRAMES = (0xC0, 0xC1, 0xC2)
"""Markers of the frames that every decoder knows: baseline, extended, progressive."""

START, END = b"\xff\xd8", b"\xff\xd9"
"""Markers that a file begins and ends with."""

MAX_SCANS, MOST_SCANNED = 100, 1_600_000_000
"""Of a progressive picture: scans, and pixels of all scans (20 of the largest picture). Encoders write about ten; each
costs as much as the whole picture, and needs few bytes."""

_SCAN = b"\xff\xda"
_MARKER = re.compile(b"\xff+[^\x00\x01\xd0-\xd7\xff]")
"""What ends the bytes of pixels: not an 0xFF that is one of them (a zero follows), nor a mark to begin afresh at."""


class JpegHeader(NamedTuple):
    """What stands in front of a JPEG's pixels.

    Attributes:
        width, height: in pixels, as stored; components: 1 grey, 3 colour, 4 for print.
        described: whether it has an APP1 part (EXIF, XMP), which may tell that the camera was rotated.
        size: bytes in front of the pixels.
        plain: whether all of it is in one scan, so that its size tells how long it takes.
    """

    width: int
    height: int
    components: int
    described: bool
    size: int
    plain: bool


def jpeg_header(data: bytes | memoryview) -> JpegHeader | None:
    """The header of a JPEG; None for what is none, or of a kind or in a state that is left to a decoder."""
    if data[:2] != START:
        return None
    at, end, frame, described, progressive = 2, len(data) - 9, None, False, False
    while at < end and data[at] == 0xFF:
        kind = data[at + 1]
        if kind in FRAMES:
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
    if data[:2] != START:
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
    """Why a JPEG would take far longer than its size tells, in words for an error; None for any other file."""
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
    return data.find(END, header.size) >= 0
