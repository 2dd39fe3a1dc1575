"""Tar shards read from beginning to end, from wherever webdataset can open them, with second and third tries."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import http.client
import lzma
import subprocess
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from chatbridge.common.documents import open_regular
from chatbridge.datasets.local_shards import TEXTS
from chatbridge.datasets.shards import Shard, is_local, local_path, scheme_of
from chatbridge.datasets.tars import COMPRESSED, LARGEST_MEMBER, LARGEST_TEXT, CutOff, members, split_name

READ_ERRORS = (
    OSError, EOFError, ValueError, MemoryError, zlib.error, lzma.LZMAError, subprocess.SubprocessError,
    http.client.HTTPException,
)  # fmt: skip
"""What a shard that is gone, cut off, damaged or served badly raises on the way through its decoders."""

HTTP_SECONDS = 60.0
"""How long a server that sends nothing is waited for."""

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


class _Stream(Protocol):
    def read(self, size: int) -> bytes: ...


class _Counted:
    """A stream of which the first bytes were read already; `count` is how much was taken from it."""

    def __init__(self, stream: _Stream, first: bytes):
        self.stream, self._first, self.count = stream, first, 0

    def read(self, size: int) -> bytes:
        data, self._first = (self._first[:size], self._first[size:]) if self._first else (self.stream.read(size), b"")
        self.count += len(data)
        return data


class _Unpacked:
    """What a compressed stream holds. Raises ValueError where it swells as only a bomb does."""

    def __init__(self, packed: _Counted, kind: str):
        self.packed, self.count = packed, 0
        openers = {"gzip": lambda stream: gzip.GzipFile(fileobj=stream), "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile}
        self.stream: _Stream = openers[kind](packed)

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.count += len(data)
        if self.count > max(FREELY, SWELLING * self.packed.count):
            raise ValueError(f"unpacks to more than {SWELLING} times its size; no media do")
        return data


class _Forward:
    """A stream read by slices, each behind the one before: what `members` reads headers from."""

    def __init__(self, stream: _Stream):
        self.stream, self.at = stream, 0

    def __getitem__(self, part: slice) -> bytes:
        while self.at < part.start and self._read(part.start - self.at):
            pass
        pieces = []
        while self.at < part.stop and (piece := self._read(part.stop - self.at)):
            pieces.append(piece)
        return b"".join(pieces)

    def _read(self, size: int) -> bytes:
        data = self.stream.read(min(size, _PIECE))
        self.at += len(data)
        return data


class _Found(NamedTuple):
    """A member of a sample: its bytes, None where they are too many to be read; see `Member`.

    `start` and `end` are the bytes of the tar at which its header starts and behind which the next one does.
    """

    name: str
    key: str
    ending: str
    size: int
    data: bytes | None
    start: int
    end: int


def _open(url: str, offset: int) -> tuple[Any, int]:
    """A stream of a shard and where in it that begins: at `offset` where the place allows it, else at 0."""
    if is_local(url):
        stream = open_regular(local_path(url))
        stream.seek(offset)
        return stream, offset
    if offset and scheme_of(url) in ("http", "https"):
        request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"})
        answer = urllib.request.urlopen(request, timeout=HTTP_SECONDS)
        partial = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        if answer.status == 206 and not partial:
            answer.close()
            raise OSError(f"bytes from {offset} on were asked for, the server sends others")
        return answer, offset if partial else 0
    from webdataset.gopen import gopen

    return gopen(url), 0


def _files(shard: Shard, offset: int) -> Iterator[_Found]:
    """The members of a tar's samples, from a header at `offset` on where that can be. Raises one of `READ_ERRORS`.

    Of a compressed tar no places are told (0).
    """
    opened, first = _open(shard.url, offset)
    try:
        begin = opened.read(max(map(len, COMPRESSED)))
        counted = _Counted(opened, begin)
        kind = next((kind for mark, kind in COMPRESSED.items() if not first and begin.startswith(mark)), None)
        data, key, held = _Forward(_Unpacked(counted, kind) if kind else counted), None, 0
        for member in members(data):
            split = split_name(member.name)
            if split is None:
                continue
            held = 0 if split[0] != key else held
            key, ending = split
            read = None
            if member.size <= min(LARGEST_MEMBER - held, LARGEST_TEXT if ending in TEXTS else LARGEST_MEMBER):
                held += member.size
                read = data[member.start : member.start + member.size]
                if len(read) < member.size:
                    raise CutOff(f"is cut off inside '{member.name}'", member.name)
            start, end = (0, 0) if kind else (first + member.header, first + member.end)
            yield _Found(member.name, key, ending, member.size, read, start, end)
        opened.close()  # raises for a command that failed
    except CutOff:
        opened.close()  # a command that failed is why
        raise
    finally:
        with contextlib.suppress(*READ_ERRORS):  # closed in the middle, or already told
            opened.close()


def _grouped(shard: Shard, offset: int, number: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, sample) of a tar: ending -> bytes, ``__key__``, and ``__span__``, its first byte and the one behind it.

    Args:
        offset: where sample `number` begins; what is given begins there, or with sample 0.
    """
    sample: dict[str, Any] | None = None
    at = number if offset else 0
    try:
        for found in _files(shard, offset):
            if found.start < offset:  # this place can only be read from the beginning
                at, offset = 0, 0
            if sample is not None and found.key != sample["__key__"]:
                yield at, sample
                at, sample = at + 1, None
            sample = sample or {"__key__": found.key, "__span__": (found.start, found.end)}
            if found.data is None:
                sample[PROBLEM] = f"'{found.name}' has {found.size:,} bytes, too many to be read"
            else:
                sample[found.ending] = found.data
            sample["__span__"] = sample["__span__"][0], found.end
    except CutOff as cut:
        if sample is None or cut.name is not None or shard.samples != at + 1:
            raise
        # Nothing is missing: a writer that sets no end mark.
    if sample is not None:
        yield at, sample
        at += 1
    if shard.samples is not None and at < shard.samples:
        raise CutOff(f"ends after {at} samples, its index says {shard.samples}")


def samples(
    shard: Shard, start: int, retries: int, seconds: float, failed: Callable[[int, str], None], offset: int = 0
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, sample) of a shard from sample number `start` on.

    Args:
        retries: how often a shard that is not a local file is opened again, without one more sample read, before it
            is given up; seconds: the wait before that, doubled every time.
        failed: told the sample and the reason of every failure after which the shard is opened again.
        offset: the byte at which sample `start` begins, 0 where it is not known: what lies before it is not fetched
            again where the server (or file) can be read from there.

    Raises:
        ShardLost: when it is given up.
    """
    done, failures = start, 0
    while True:
        empty = True
        try:
            for number, sample in _grouped(shard, offset, done):
                empty = False
                if number >= done:
                    done, offset, failures = number + 1, sample["__span__"][1], 0
                    yield number, sample
            return
        except READ_ERRORS as error:
            reason = str(getattr(error, "strerror", None) or error or type(error).__name__)
            if empty:
                offset = 0  # perhaps it is another file by now
            if is_local(shard.url) or failures >= retries:
                raise ShardLost(done, reason) from error
            failed(done, reason)
            time.sleep(seconds * 2**failures)
            failures += 1
