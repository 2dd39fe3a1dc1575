"""Tar shards read from beginning to end, from wherever webdataset can open them, with second and third tries."""

from __future__ import annotations

import contextlib
import http.client
import lzma
import re
import subprocess
import tarfile
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlparse

from chatbridge.datasets.shards import BLOCK, Shard, is_local, split_name

READ_ERRORS = (
    OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError, subprocess.SubprocessError,
    http.client.HTTPException,
)  # fmt: skip
"""What a shard that is gone, cut off or served badly raises on the way through its decoders."""

HTTP_SECONDS = 60.0
"""How long a server that sends nothing is waited for."""

_META = re.compile(r"__[^/]*__($|/)")
"""Members that are about the shard, by webdataset's rule."""

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")


class CutTar(OSError):
    """A tar that ends before its end mark."""


class ShardLost(Exception):
    """A shard whose rest cannot be read.

    Attributes:
        number: of the first sample that is lost; reason: why.
    """

    def __init__(self, number: int, reason: str):
        super().__init__(reason)
        self.number, self.reason = number, reason


class _Watched:
    """A stream that remembers how it began and ended."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.first = self.last = b""

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        if data:
            self.first = self.first or data[:8]
            self.last = data[-BLOCK:] if len(data) >= BLOCK else (self.last + data)[-BLOCK:]
        return data

    def finish(self) -> None:
        """Read what follows the archive and close. Raises for a cut archive and for a command that failed."""
        while self.read(1 << 16):
            pass
        self.stream.close()
        if not self.first.startswith(_COMPRESSED) and self.last.strip(b"\0"):
            raise CutTar("is cut off: it has no end mark")


class _Member(NamedTuple):
    """A file of a tar, with the bytes of the tar at which its header starts and behind which the next one's does."""

    name: str
    data: bytes
    start: int
    end: int


def _open(url: str, offset: int) -> tuple[Any, int]:
    """A stream of a shard and where in it that begins: at `offset` where the place allows it, else at 0."""
    scheme = urlparse(url).scheme
    if offset and scheme in ("http", "https"):
        request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"})
        answer = urllib.request.urlopen(request, timeout=HTTP_SECONDS)
        partial = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        if answer.status == 206 and not partial:
            answer.close()
            raise OSError(f"bytes from {offset} on were asked for, the server sends others")
        return answer, offset if partial else 0
    if offset and is_local(url):
        stream = open(url.removeprefix("file:"), "rb")  # noqa: SIM115 (the caller closes it)
        stream.seek(offset)
        return stream, offset
    from webdataset.gopen import gopen

    return gopen(url), 0


def _files(shard: Shard, offset: int) -> Iterator[_Member]:
    """The files of a tar, from a header at `offset` on where that can be. Raises one of `READ_ERRORS`.

    Of a compressed tar no places are told (0).
    """
    opened, first = _open(shard.url, offset)
    stream = _Watched(opened)
    try:
        with tarfile.open(fileobj=stream, mode="r|" if first else "r|*") as tar:
            for info in tar:
                if info.isreg() and not _META.match(info.name):
                    data = tar.extractfile(info).read()
                    start = first + info.offset
                    end = first + info.offset_data + -(-info.size // BLOCK) * BLOCK
                    if not first and stream.first.startswith(_COMPRESSED):
                        start = end = 0
                    yield _Member(info.name, data, start, end)
                tar.members = []  # it would keep a list of all
        stream.finish()
    finally:
        with contextlib.suppress(*READ_ERRORS):  # closed in the middle, or already told
            stream.stream.close()


def _grouped(shard: Shard, offset: int, number: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, sample) of a tar: ending -> bytes, ``__key__``, and ``__span__``, its first byte and the one behind it.

    Args:
        offset: where sample `number` begins; what is given begins there, or with sample 0.
    """
    sample: dict[str, Any] | None = None
    at = number if offset else 0
    try:
        for name, data, start, end in _files(shard, offset):
            if start < offset:  # this place can only be read from the beginning
                at, offset = 0, 0
            split = split_name(name)
            if split is None:
                continue
            if sample is not None and split[0] != sample["__key__"]:
                yield at, sample
                at, sample = at + 1, None
            sample = sample or {"__key__": split[0], "__span__": (start, end)}
            sample[split[1]] = data
            sample["__span__"] = sample["__span__"][0], end
    except CutTar:
        if sample is None or shard.samples != at + 1:  # nothing is missing: a writer that sets no end mark
            raise
    if sample is not None:
        yield at, sample
        at += 1
    if shard.samples is not None and at < shard.samples:
        raise CutTar(f"ends after {at} samples, its index says {shard.samples}")


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
