"""Tar shards read from beginning to end, from wherever webdataset can open them, with second and third tries."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import http.client
import lzma
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from chatbridge.common.documents import open_regular
from chatbridge.datasets.local_shards import TEXTS
from chatbridge.datasets.shards import Shard, is_local, local_path
from chatbridge.datasets.tars import COMPRESSED, LARGEST_MEMBER, LARGEST_TEXT, CutOff, members, split_name

READ_ERRORS = (
    OSError, EOFError, ValueError, MemoryError, zlib.error, lzma.LZMAError, subprocess.SubprocessError,
    http.client.HTTPException,
)  # fmt: skip
"""What a shard that is gone, cut off, damaged or served badly raises on the way through its decoders."""

SWELLING, FREELY = 200, 1 << 28
"""What a compressed shard may unpack to: so many times its own size, which is asked from so many bytes on."""

PROBLEM = "__problem__"
"""In a sample: why it cannot be used, where that is known before its annotation is read."""

_PIECE = 1 << 20


class ShardLost(Exception):
    """A shard whose rest cannot be read.

    Attributes:
        number: of the first sample that is lost; reason: why.
    """

    def __init__(self, number: int, reason: str):
        super().__init__(reason)
        self.number, self.reason = number, reason


class _Counted:
    """A stream of which the first bytes were read already; `count` is how much was taken from it."""

    def __init__(self, stream: Any, first: bytes = b""):
        self.stream, self._first, self.count = stream, first, 0

    def read(self, size: int) -> bytes:
        data, self._first = (self._first[:size], self._first[size:]) if self._first else (self.stream.read(size), b"")
        self.count += len(data)
        return data


class _Slices:
    """A stream read by slices, each behind the one before: what `members` reads headers from.

    Args:
        packed: the compressed stream that it comes out of, if any: ValueError where that swells as only a bomb does.
    """

    def __init__(self, stream: _Counted, packed: _Counted | None):
        self.stream, self.packed = stream, packed

    def __getitem__(self, part: slice) -> bytes:
        while self.stream.count < part.start and self._read(part.start):
            pass
        pieces = []
        while self.stream.count < part.stop and (piece := self._read(part.stop)):
            pieces.append(piece)
        return b"".join(pieces)

    def _read(self, end: int) -> bytes:
        data = self.stream.read(min(end - self.stream.count, _PIECE))
        if self.packed is not None and self.stream.count > max(FREELY, SWELLING * self.packed.count):
            raise ValueError(f"unpacks to more than {SWELLING} times its size; no media do")
        return data


def _slices(opened: Any) -> _Slices:
    """The bytes of a tar, unpacked where it is compressed."""
    begin = opened.read(max(map(len, COMPRESSED)))
    stream = _Counted(opened, begin)
    kind = next((kind for mark, kind in COMPRESSED.items() if begin.startswith(mark)), None)
    if kind is None:
        return _Slices(stream, None)
    openers = {"gzip": lambda packed: gzip.GzipFile(fileobj=packed), "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile}
    return _Slices(_Counted(openers[kind](stream)), stream)


def _samples(shard: Shard) -> Iterator[dict[str, Any]]:
    """All samples of a tar: ending -> bytes, and ``__key__``. Raises one of `READ_ERRORS`."""
    from webdataset.gopen import gopen

    opened = open_regular(local_path(shard.url)) if is_local(shard.url) else gopen(shard.url)
    sample: dict[str, Any] | None = None
    count = held = 0
    try:
        data = _slices(opened)
        for member in members(data):
            split = split_name(member.name)
            if split is None:
                continue
            key, ending = split
            if sample is not None and key != sample["__key__"]:
                yield sample
                sample, held, count = None, 0, count + 1
            sample = sample or {"__key__": key}
            if member.size > min(LARGEST_MEMBER - held, LARGEST_TEXT if ending in TEXTS else LARGEST_MEMBER):
                sample[PROBLEM] = f"'{member.name}' has {member.size:,} bytes, too many to be read"
                continue
            held += member.size
            sample[ending] = data[member.start : member.start + member.size]
            if len(sample[ending]) < member.size:
                raise CutOff(f"is cut off inside '{member.name}'", member.name)
        opened.close()  # raises for a command that failed
    except CutOff as cut:
        opened.close()  # a command that failed is why
        if sample is None or cut.name is not None or shard.samples != count + 1:
            raise
        # Nothing is missing: a writer that sets no end mark.
    finally:
        with contextlib.suppress(*READ_ERRORS):  # closed in the middle, or already told
            opened.close()
    if sample is not None:
        yield sample
        count += 1
    if shard.samples is not None and count < shard.samples:
        raise CutOff(f"ends after {count} samples, its index says {shard.samples}")


def samples(
    shard: Shard, start: int, retries: int, seconds: float, failed: Callable[[int, str], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, sample) of a shard from sample number `start` on; what lies before is read, too.

    Args:
        retries: how often a shard that is not a local file is opened again, without one more sample read, before it
            is given up; seconds: the wait before that, doubled every time.
        failed: told the sample and the reason of every failure after which the shard is opened again.

    Raises:
        ShardLost: when it is given up.
    """
    done, failures = start, 0
    while True:
        try:
            for number, sample in enumerate(_samples(shard)):
                if number >= done:
                    done, failures = number + 1, 0
                    yield number, sample
            return
        except READ_ERRORS as error:
            reason = str(getattr(error, "strerror", None) or error or type(error).__name__)
            if is_local(shard.url) or failures >= retries:
                raise ShardLost(done, reason) from error
            failed(done, reason)
            time.sleep(seconds * 2**failures)
            failures += 1
