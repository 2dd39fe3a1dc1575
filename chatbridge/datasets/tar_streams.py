"""Tar shards read from beginning to end, from wherever webdataset can open them, with second and third tries."""

from __future__ import annotations

import contextlib
import lzma
import subprocess
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from chatbridge.datasets.shards import BLOCK, Shard, is_local, split_name

READ_ERRORS = (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError, subprocess.SubprocessError)
"""What a shard that is gone, cut off or served badly raises on the way through its decoders."""

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

    def __str__(self) -> str:
        return "shard"


def _files(shard: Shard) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every file of a tar. Raises one of `READ_ERRORS`."""
    from webdataset.gopen import gopen
    from webdataset.tariterators import tar_file_iterator

    stream = _Watched(gopen(shard.url))
    try:
        for file in tar_file_iterator(stream):
            yield file["fname"], file["data"]
        stream.finish()
    finally:
        with contextlib.suppress(*READ_ERRORS):  # closed in the middle, or already told
            stream.stream.close()


def _grouped(shard: Shard) -> Iterator[dict[str, Any]]:
    """The samples of a tar: ending -> bytes, and ``__key__``."""
    sample: dict[str, Any] | None = None
    count = 0
    try:
        for name, data in _files(shard):
            split = split_name(name)
            if split is None:
                continue
            if sample is not None and split[0] != sample["__key__"]:
                count += 1
                yield sample
                sample = None
            sample = sample or {"__key__": split[0]}
            sample[split[1]] = data
    except CutTar:
        if sample is None or shard.samples != count + 1:  # nothing is missing: a writer that sets no end mark
            raise
    if sample is not None:
        yield sample


def samples(
    shard: Shard, start: int, retries: int, seconds: float, failed: Callable[[int, str], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, sample) of a shard from sample number `start` on.

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
            number = -1
            for number, sample in enumerate(_grouped(shard)):
                if number >= done:
                    done, failures = number + 1, 0
                    yield number, sample
            if shard.samples is not None and number + 1 < shard.samples:
                raise CutTar(f"ends after {number + 1} samples, its index says {shard.samples}")
            return
        except READ_ERRORS as error:
            reason = str(getattr(error, "strerror", None) or error or type(error).__name__).split(" @ ")[0]
            if is_local(shard.url) or failures >= retries:
                raise ShardLost(done, reason) from error
            failed(done, reason)
            time.sleep(seconds * 2**failures)
            failures += 1
