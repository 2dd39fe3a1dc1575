"""Samples of tar shards: by number from local tars, or from beginning to end from wherever webdataset can open them.

Of a local tar only the place where each sample begins is kept (8 bytes). Its text is read with its headers; its media,
which are most of it, when their turn comes.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import http.client
import lzma
import os
import subprocess
import time
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from chatbridge.common.documents import open_regular
from chatbridge.datasets import tars
from chatbridge.datasets.shards import Shard, is_local, local_path
from chatbridge.datasets.tars import LARGEST_MEMBER, LARGEST_TEXT, TEXTS, CutOff, SampleOffsets, split_name
from chatbridge.processors.base import MediaError

OPEN_SHARDS = 32
"""Local shards that a process keeps open, with the places of their samples."""

READ_ERRORS = (
    OSError, EOFError, ValueError, MemoryError, zlib.error, lzma.LZMAError, subprocess.SubprocessError,
    http.client.HTTPException,
)  # fmt: skip
"""What a shard that is gone, cut off, damaged or served badly raises on the way through its decoders."""

MOST_EXPANSION, UNCHECKED_BYTES = 200, 1 << 28
"""A compressed shard may unpack to so many times its own size, which is asked from so many bytes on."""

PROBLEM = "__problem__"
"""In a sample: why it cannot be used, where that is known before its annotation is read."""

_PIECE = 1 << 20


class MemberPlace(NamedTuple):
    """Where a member's bytes are: number of the shard, first byte, how many."""

    shard: int
    start: int
    size: int


class _FilePart:
    """A file from one of its bytes on, of which only what is asked for is read."""

    def __init__(self, descriptor: int, first: int):
        self.descriptor, self.first = descriptor, first

    def __getitem__(self, part: slice) -> bytes:
        size = part.stop - part.start
        data = os.pread(self.descriptor, size, self.first + part.start)
        if len(data) < size:
            raise ValueError(f"is cut off: {size} bytes are not there behind byte {self.first + part.start}")
        return data


class LocalShards:
    """Reads samples of local tars by number; keeps the last used ones open.

    Args:
        shards: the tars. (Forked workers may share what is open: every read names its place.)
    """

    def __init__(self, shards: Sequence[Shard]):
        self.shards = list(shards)
        self._opened: OrderedDict[int, tuple[int, SampleOffsets]] = OrderedDict()
        weakref.finalize(self, _close, self._opened)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": OrderedDict()}

    def members(self, number: int, sample: int) -> dict[str, Any]:
        """What one sample of a shard has, by ending: the bytes of its `TEXTS`, a `MemberPlace` of its media; and
        ``__key__``.

        Raises:
            MediaError: a shard that is gone, cut off before this sample, or changed; a text of unlikely size.
        """
        url = self.shards[number].url
        descriptor, offsets = self._offsets(number)
        if sample >= len(offsets):
            reason = offsets.problem or "has fewer samples than its index says"
            raise MediaError(url, f"sample {sample} is not there ({len(offsets)} are): it {reason}")
        first, last = offsets.starts[sample], offsets.starts[sample + 1]
        found, data = {}, _FilePart(descriptor, first)
        try:
            for member in tars.members(data, last - first, part=True):
                key, ending = split_name(member.name) or (None, "")
                if key is None or found.setdefault("__key__", key) != key:
                    continue
                if ending not in TEXTS:
                    found[ending] = MemberPlace(number, first + member.start, member.size)
                    continue
                if member.size > LARGEST_TEXT:
                    raise MediaError(f"{url}/{member.name}", f"has {member.size:,} bytes, too many for a text")
                found[ending] = data[member.start : member.start + member.size]
        except MediaError:
            raise
        except (ValueError, OSError) as error:
            raise MediaError(url, f"sample {sample} {error}; the file has changed or is damaged") from error
        if not found:
            raise MediaError(url, f"sample {sample} is not where it was; the file has changed")
        return found

    def read(self, place: MemberPlace) -> bytes:
        """The bytes of a medium. Raises MediaError: one of unlikely size; a shard that is gone or was cut off."""
        url, (descriptor, _) = self.shards[place.shard].url, self._offsets(place.shard)
        if place.size > LARGEST_MEMBER:
            raise MediaError(url, f"a member of {place.size:,} bytes is not read; {LARGEST_MEMBER:,} is the limit")
        try:
            data = os.pread(descriptor, place.size, place.start)
        except OSError as error:
            raise MediaError(url, f"cannot be read ({error.strerror or error})") from error
        if len(data) < place.size:
            raise MediaError(url, f"is cut off before byte {place.start + place.size}")
        return data

    def _offsets(self, number: int) -> tuple[int, SampleOffsets]:
        """(file descriptor, where its samples begin) of a shard."""
        if number in self._opened:
            self._opened.move_to_end(number)
            return self._opened[number]
        url = self.shards[number].url
        try:
            offsets = tars.scan(local_path(url))
            descriptor = os.open(local_path(url), os.O_RDONLY)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise MediaError(url, f"cannot be opened ({reason})") from error
        self._opened[number] = (descriptor, offsets)
        if len(self._opened) > OPEN_SHARDS:
            _, (old, _) = self._opened.popitem(last=False)
            os.close(old)
        return descriptor, offsets


def _close(opened: dict[int, tuple[int, SampleOffsets]]) -> None:
    for descriptor, _ in opened.values():
        os.close(descriptor)


class ShardLost(Exception):
    """A shard whose rest cannot be read.

    Attributes:
        number: of the first sample that is lost; reason: why.
    """

    def __init__(self, number: int, reason: str):
        super().__init__(reason)
        self.number, self.reason = number, reason


class _ForwardStream:
    """Bytes that can only be read forwards, by slices as `tars.members` does, or as a decompressor reads.

    Args:
        first: bytes that were taken from the stream already.
        packed: the compressed stream that it comes out of, if any: ValueError where that swells as only a bomb does.
    """

    def __init__(self, stream: Any, first: bytes = b"", packed: _ForwardStream | None = None):
        self.stream, self.packed, self.count, self._first = stream, packed, 0, first

    def read(self, size: int) -> bytes:
        data, self._first = (self._first[:size], self._first[size:]) if self._first else (self.stream.read(size), b"")
        self.count += len(data)
        if self.packed is not None and self.count > max(UNCHECKED_BYTES, MOST_EXPANSION * self.packed.count):
            raise ValueError(f"unpacks to more than {MOST_EXPANSION} times its size; no media do")
        return data

    def __getitem__(self, part: slice) -> bytes:
        while self.count < part.start and self.read(min(part.start - self.count, _PIECE)):
            pass
        pieces = []
        while self.count < part.stop and (piece := self.read(min(part.stop - self.count, _PIECE))):
            pieces.append(piece)
        return b"".join(pieces)


def _unpacked(opened: Any) -> _ForwardStream:
    """The bytes of a tar, unpacked where it is compressed."""
    first = opened.read(max(map(len, tars.COMPRESSED)))
    stream = _ForwardStream(opened, first)
    kind = next((kind for mark, kind in tars.COMPRESSED.items() if first.startswith(mark)), None)
    if kind is None:
        return stream
    unpackers = {"gzip": lambda packed: gzip.GzipFile(fileobj=packed), "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile}
    return _ForwardStream(unpackers[kind](stream), packed=stream)


def _samples(shard: Shard) -> Iterator[dict[str, Any]]:
    """All samples of a tar: ending -> bytes, and ``__key__``. Raises one of `READ_ERRORS`."""
    from webdataset.gopen import gopen

    opened = open_regular(local_path(shard.url)) if is_local(shard.url) else gopen(shard.url)
    sample: dict[str, Any] | None = None
    count = held = 0
    try:
        data = _unpacked(opened)
        for member in tars.members(data):
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
        with contextlib.suppress(*READ_ERRORS):  # closed in the middle, or already reported
            opened.close()
    if sample is not None:
        yield sample
        count += 1
    if shard.samples is not None and count < shard.samples:
        raise CutOff(f"ends after {count} samples, its index says {shard.samples}")


def samples_in_sequence(
    shard: Shard,
    start: int = 0,
    retries: int = 0,
    seconds: float = 0.0,
    failed: Callable[[int, str], None] = lambda number, reason: None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, sample) of a shard from sample number `start` on; what lies before is read, too.

    Args:
        retries: how often a shard that is not a local file is opened again, without one more sample read, before it
            is given up; seconds: the wait before that, doubled every time.
        failed: called with the sample and the reason of every failure after which the shard is opened again.

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
