"""Faults that know a media format: files that are whole by their checksums and lengths, and lie nevertheless."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

from tests.fuzz.damage import NUMBERS
from tests.fuzz.media_files import TITLE

RATES = (0, 1, 7, 99, 8000, 15999, 44101, 48001, 192_000, 767_999, 2**31 - 1, 2**32 - 1)
SIDES = (0, 1, 2, 4096, 9000, 30_000, 65_535, 80_000_000, 2**31 - 1)


def png(data: bytes, rng: random.Random) -> bytes:
    """Chunks with other sides, depths, contents or places, each with its right checksum."""
    chunks = list(_chunks(data))
    at = 0 if rng.random() < 0.5 else rng.randrange(len(chunks))
    kind, body = chunks[at]
    if kind == b"IHDR":
        width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", body)
        width, height = rng.choice((width, rng.choice(SIDES))), rng.choice((height, rng.choice(SIDES)))
        depth, colour = rng.choice((depth, 1, 3, 8, 16, 255)), rng.choice((colour, 0, 2, 3, 4, 6, 7))
        chunks[at] = kind, struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, depth, colour, *rest)
    else:
        what = rng.randrange(4)
        if what == 0:
            chunks.insert(at, (rng.choice((b"iCCP", b"zTXt", b"eXIf", b"PLTE", b"tRNS")), _text_chunk(rng)))
        elif what == 1:
            chunks.insert(rng.randrange(len(chunks)), chunks.pop(at))
        elif what == 2:
            chunks[at] = kind, zlib.compress(bytes(rng.choice((0, 100, 1_000_000))))
        else:
            chunks[at] = kind, body * rng.choice((0, 2, 1000))
    return data[:8] + b"".join(_chunk(*chunk) for chunk in chunks)


def _text_chunk(rng: random.Random) -> bytes:
    return b"name\0\0" + zlib.compress(bytes(rng.choice((10, 100_000, 50_000_000))), 1)


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


@cache
def flat_png(width: int, height: int) -> bytes:
    """A grey picture of any sides in few bytes."""
    pack, row, parts, left = zlib.compressobj(6), bytes(width + 1), [], height
    while left > 0:
        rows = min(left, max(1, (1 << 20) // len(row)))
        parts.append(pack.compress(row * rows))
        left -= rows
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", b"".join(parts) + pack.flush()), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def long_picture(_: bytes, rng: random.Random) -> bytes:
    """Few bytes, many pixels, all there: within the limit of a picture's area, not within reason."""
    return flat_png(*rng.choice(((1, 70_000_000), (70_000_000, 1), (7, 9_000_000), (20_000, 100), (8900, 8900))))


def jpeg(data: bytes, rng: random.Random) -> bytes:
    """Other sides, or other numbers of bits and components, in the frame's header."""
    found = bytearray(data)
    at = next((i for i in range(len(data) - 9) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC1, 0xC2)), None)
    if at is None:
        return data
    field = rng.choice(((4, 1), (5, 2), (7, 2), (5, 2), (7, 2), (9, 1), (11, 1), (14, 1)))
    found[at + field[0] : at + sum(field)] = (rng.choice(NUMBERS) & (256 ** field[1] - 1)).to_bytes(field[1], "big")
    return bytes(found)


@cache
def _flat_scans() -> tuple[bytes, bytes]:
    """A large progressive JPEG up to its last scan, and that scan."""
    out = io.BytesIO()
    Image.fromarray(np.full((4000, 4000), 90, np.uint8)).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last], data[last:-2]


def many_scans(_: bytes, rng: random.Random) -> bytes:
    """A progressive JPEG that refines the same pixels over and over."""
    begin, scan = _flat_scans()
    return begin + scan * rng.choice((1, 50, 600)) + b"\xff\xd9"


def wav(data: bytes, rng: random.Random) -> bytes:
    """Other numbers in the header of a WAV."""
    found = bytearray(data)
    at = data.find(b"fmt ")
    fields: list[tuple[int, int, tuple[int, ...]]] = [
        (8, 2, (0, 1, 2, 3, 6, 7, 0x11, 0x31, 0x55, 0xFF, 0x161, 0xFFFE)), (10, 2, (0, 1, 2, 9, 255, 1024, 65_535)),
        (12, 4, RATES), (12, 4, RATES), (16, 4, NUMBERS), (20, 2, (0, 1, 3, 255, 65_535)),
        (22, 2, (0, 1, 7, 24, 64, 255, 65_535)), (4, 4, (0, 2, 14, 15, 255, 2**31, 2**32 - 1)),
    ]  # fmt: skip
    if at >= 0:
        for place, width, values in rng.sample(fields, rng.choice((1, 1, 2))):
            _put(found, at + place, width, rng.choice(values))
    if rng.random() < 0.3 and (at := data.find(b"data")) >= 0:
        _put(found, at + 4, 4, rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1)))
    return bytes(found)


def flac(data: bytes, rng: random.Random) -> bytes:
    """Another rate and number of samples in the header of a FLAC."""
    found = bytearray(data)
    rate, rest = rng.choice(RATES) & 0xFFFFF, int.from_bytes(data[18:26], "big") & ((1 << 44) - 1)
    if rng.random() < 0.4:
        rest = rest >> 36 << 36 | rng.choice(NUMBERS) & ((1 << 36) - 1)
    found[18:26] = (rate << 44 | rest).to_bytes(8, "big")
    return bytes(found)


def _put(found: bytearray, at: int, width: int, value: int) -> None:
    found[at : at + width] = (value & (256**width - 1)).to_bytes(width, "little")


def boxes(data: bytes, rng: random.Random) -> bytes:
    """Another number in the tables of an MP4, MOV or AVIF."""
    if rng.random() < 0.15:  # a codec that nobody has, in one track
        return data.replace(rng.choice((b"mp4a", b"avc1", b"mp4v", b"jpeg", b"sowt")), rng.choice((b"apac", b"xxxx")))
    found = bytearray(data)
    names = (b"mvhd", b"mdhd", b"tkhd", b"stsd", b"stts", b"stsz", b"stsc", b"stco", b"elst", b"trun", b"ispe", b"iloc")
    places = [at for name in names if (at := data.find(name)) >= 0]
    if places:
        at, width = rng.choice(places) + 4 * rng.randrange(-1, 12), rng.choice((2, 4, 4))
        found[at : at + width] = (rng.choice(NUMBERS) & (256**width - 1)).to_bytes(width, "big")
    return bytes(found)


def title(data: bytes, rng: random.Random) -> bytes:
    """A title that is not UTF-8, as old programs wrote them: the rest is good."""
    words = TITLE.encode()
    return data.replace(
        words, rng.choice((b"Caf\xe9 \xfcber \xdf\xdf", b"\xff" * 13, b"\xf0\x9f\x98" * 4 + b"\xc3"))[: len(words)]
    )


def followed(data: bytes, rng: random.Random) -> bytes:
    """Good, and something behind it."""
    return data + rng.choice((bytes(1), bytes(100_000), data, b"\xff\xd9", rng.randbytes(300)))


Fault = Callable[[bytes, random.Random], bytes]

KNOWING: dict[str, tuple[Fault, ...]] = {
    ".png": (png, png, png, long_picture), ".jpg": (jpeg, jpeg, jpeg, many_scans), ".wav": (wav,), ".flac": (flac,),
    ".mp4": (boxes,), ".mov": (boxes,), ".m4a": (boxes,), ".avif": (boxes,),
}  # fmt: skip
"""By a file's ending."""

ALWAYS: tuple[Fault, ...] = (title, followed)
