"""Samples of local, uncompressed tars, read by number.

Of a tar only the place where each sample begins is kept (8 bytes). Its text is read with its headers; its media, which
are most of it, when their turn comes.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from chatbridge.datasets.shards import Shard, Table, local_path, scan
from chatbridge.datasets.tars import LARGEST_MEMBER, LARGEST_TEXT, members, split_name
from chatbridge.processors.base import MediaError

TEXTS = ("json", "txt")
"""Endings of what a sample's annotation is in."""

OPEN_SHARDS = 32
"""Local shards that a process keeps open, with the places of their samples."""


class Extent(NamedTuple):
    """Where a member's bytes are in its tar."""

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
        self._open: OrderedDict[int, tuple[int, Table]] = OrderedDict()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": OrderedDict()}

    def entry(self, number: int, sample: int) -> tuple[str, dict[str, bytes | Extent]]:
        """(key, by ending) what one sample of a shard has: the bytes of its `TEXTS`, the places of its media.

        Raises:
            MediaError: a shard that is gone, cut off before this sample, or changed; a text of unlikely size.
        """
        shard = self.shards[number]
        descriptor, table = self._table(number)
        if sample >= len(table):
            reason = table.problem or "has fewer samples than its index says"
            raise MediaError(shard.url, f"sample {sample} is not there ({len(table)} are): it {reason}")
        first, last = table.starts[sample], table.starts[sample + 1]
        key, found, data = None, {}, _FilePart(descriptor, first)
        try:
            for member in members(data, last - first, part=True):
                split = split_name(member.name)
                if split is not None and key in (None, split[0]):
                    key, ending = split
                    start, size = member.start, member.size
                    if ending in TEXTS and size > LARGEST_TEXT:
                        raise MediaError(f"{shard.url}/{member.name}", f"has {size:,} bytes, too many for a text")
                    found[ending] = data[start : start + size] if ending in TEXTS else Extent(first + start, size)
        except MediaError:
            raise
        except (ValueError, OSError) as error:
            raise MediaError(shard.url, f"sample {sample} {error}; the file has changed or is damaged") from error
        if key is None:
            raise MediaError(shard.url, f"sample {sample} is not where it was; the file has changed")
        return key, found

    def bytes_at(self, number: int, extent: Extent) -> bytes:
        """The bytes of a medium. Raises MediaError: one of unlikely size; a shard that is gone or was cut off."""
        descriptor, _ = self._table(number)
        if extent.size > LARGEST_MEMBER:
            reason = f"a member of {extent.size:,} bytes is not read; {LARGEST_MEMBER:,} is the limit"
            raise MediaError(self.shards[number].url, reason)
        try:
            data = os.pread(descriptor, extent.size, extent.start)
        except OSError as error:
            raise MediaError(self.shards[number].url, f"cannot be read ({error.strerror or error})") from error
        if len(data) < extent.size:
            raise MediaError(self.shards[number].url, f"is cut off before byte {extent.start + extent.size}")
        return data

    def _table(self, number: int) -> tuple[int, Table]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        url = self.shards[number].url
        try:
            table = scan(local_path(url))
            descriptor = os.open(local_path(url), os.O_RDONLY)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise MediaError(url, f"cannot be opened ({reason})") from error
        self._open[number] = (descriptor, table)
        if len(self._open) > OPEN_SHARDS:
            _, (old, _) = self._open.popitem(last=False)
            os.close(old)
        return descriptor, table
