"""Tar shards of the webdataset layout: lists of them, their indexes, and what is where in them.

A sample is the run of members that share a name up to its first dot: ``0017.jpg``, ``0017.json``.
Sources: POSIX.1-2001 (ustar and pax headers), the webdataset naming convention.
"""

from __future__ import annotations

import json
import mmap
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlparse

BLOCK = 512


@dataclass(frozen=True)
class Shard:
    """One tar.

    Attributes:
        url: a path, or a URL that webdataset opens; samples: how many it holds; size: in bytes; None where not known.
    """

    url: str
    samples: int | None = None
    size: int | None = None

    @property
    def name(self) -> str:
        """Its short name, for messages."""
        return self.url if self.url.startswith("pipe:") else self.url.rsplit("/", 1)[-1]


def is_local(url: str) -> bool:
    """Whether a shard is a plain file here."""
    return urlparse(url).scheme in ("", "file")


def find_shards(patterns: Sequence[str], folder: Path | None, index: Path | None = None) -> list[Shard]:
    """The shards that patterns mean: index files, paths and URLs with ``{000..123}``, local paths with ``*``.

    Args:
        patterns: relative paths start at `folder`; index: tells the sizes of shards that patterns name.

    Raises:
        ValueError: a pattern without files, a URL that cannot be opened, an index that cannot be read.
    """
    from braceexpand import braceexpand
    from webdataset.gopen import gopen_schemes

    known = {shard.name: shard for shard in read_index(index)} if index is not None else {}
    shards: list[Shard] = []
    for pattern in patterns:
        if is_local(pattern) and pattern.endswith(".json"):
            shards += read_index((folder or Path()) / pattern)
            continue
        for url in braceexpand(pattern):
            scheme = urlparse(url).scheme
            if scheme not in ("", "file") and scheme not in gopen_schemes:
                raise ValueError(
                    f"shards: there is no way to open '{url}'; there is for paths and "
                    f"{', '.join(sorted(name for name in gopen_schemes if name[0] != '_'))}; of other stores, write "
                    f"the command that prints a shard: 'pipe:... {url}'"
                )
            found = [url] if scheme else _local(url.removeprefix("file:"), folder)
            for place in found:
                shard = Shard(place)
                listed = known.get(shard.name, shard)
                shards.append(Shard(place, listed.samples, listed.size))
    if len({shard.url for shard in shards}) < len(shards):
        double = next(s.url for i, s in enumerate(shards) if s.url in {t.url for t in shards[:i]})
        raise ValueError(f"shards: '{double}' is named twice")
    return shards


def _local(pattern: str, folder: Path | None) -> list[str]:
    path = Path(pattern) if folder is None else folder / pattern
    if not any(sign in pattern for sign in "*?["):
        return [str(path)]
    found = sorted(str(p) for p in path.parent.glob(path.name))
    if not found:
        raise ValueError(f"shards: no file is called '{path}'")
    return found


def read_index(path: Path) -> list[Shard]:
    """The shards of an index file, ``{"shards": [{"file", "samples", "bytes"}]}``, files relative to its folder.

    webdataset's own form, ``{"shardlist": [{"url", "nsamples"}]}``, is read, too.

    Raises:
        ValueError: a file that is not such an index.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        listed = tree["shards"] if "shards" in tree else tree["shardlist"]
        shards = []
        for line in listed:
            url = line["file"] if "file" in line else line["url"]
            samples = line.get("samples", line.get("nsamples"))
            size = line.get("bytes", line.get("filesize"))
            url = str(path.parent / url) if is_local(url) else url
            shards.append(Shard(url, None if samples is None else int(samples), None if size is None else int(size)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: is not an index of shards ({type(error).__name__}: {error})") from error
    if not shards:
        raise ValueError(f"{path}: lists no shards")
    return shards


class Member(NamedTuple):
    """A regular file in a tar: its name, where its header starts, where its bytes start, and how many they are."""

    name: str
    header: int
    start: int
    size: int


class Bytes(Protocol):
    """What gives bytes by slices: bytes, a memory-mapped file, or something that reads them when it is asked."""

    def __getitem__(self, part: slice) -> bytes: ...


class CutOff(ValueError):
    """A tar that is shorter than it should be.

    Attributes:
        name: of the member that it ends in; None where it ends between members.
    """

    def __init__(self, reason: str, name: str | None):
        super().__init__(reason)
        self.name = name


def members(data: Bytes, end: int, part: bool = False) -> Iterator[Member]:
    """The regular files of a tar, up to `end`; a `part` of a tar has no end mark.

    Raises:
        ValueError: at the place where the tar is cut off or damaged.
    """
    at, name, size, header = 0, None, None, 0
    while at + BLOCK <= end:
        block = data[at : at + BLOCK]
        if block[0] == 0 and not block.strip(b"\0"):
            return
        kind = block[156:157]
        length = _number(block[124:136], at)
        start = at + BLOCK
        after = start + (length + BLOCK - 1) // BLOCK * BLOCK
        if after > end:
            raise CutOff(
                f"is cut off: a member at byte {at} needs {after} bytes, {end} are there", name or _name(block)
            )
        if name is None and size is None:
            header = at
        if kind == b"x":
            name, size = _pax(data[start : start + length], name, size)
        elif kind == b"L":
            name = data[start : start + length].rstrip(b"\0").decode("utf-8", "replace")
        elif kind not in (b"g", b"K"):
            if size is not None and size != length:  # sizes from 8 GiB up stand in the extended header
                length, after = size, start + (size + BLOCK - 1) // BLOCK * BLOCK
            if kind in (b"0", b"\0", b"7"):
                yield Member(name or _name(block), header, start, length)
            name = size = None
        at = after
    if not part:
        raise CutOff(f"is cut off: it has no end mark (after {at} bytes)", None)


def _number(field: bytes, at: int) -> int:
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise ValueError(f"is damaged: no member header at byte {at}") from None


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _pax(records: bytes, name: str | None, size: int | None) -> tuple[str | None, int | None]:
    at = 0
    while at < len(records) and records[at : at + 1] != b"\0":
        length = int(records[at : records.index(b" ", at)])
        key, _, value = records[records.index(b" ", at) + 1 : at + length - 1].partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "replace")
        elif key == b"size":
            size = int(value)
        at += length
    return name, size


def split_name(name: str) -> tuple[str, str] | None:
    """(key, ending) of a member by webdataset's rule, or None for one that belongs to no sample."""
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    if not dot or not stem or (stem.startswith("__") and stem.endswith("__")):
        return None
    return folder + slash + stem, ending.lower()


@dataclass
class Table:
    """Where the samples of a local tar begin.

    Attributes:
        starts: byte offset of every sample, and the end of the last one.
        problem: what is wrong with the file behind the last whole sample; None for a whole tar.
    """

    starts: array
    problem: str | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1


def scan(path: str | Path) -> Table:
    """The table of a local tar, from its headers alone; a cut one gives its whole samples and the problem.

    Raises:
        OSError: a file that cannot be opened.
    """
    starts, problem, key, end = array("q"), None, None, 0
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return Table(array("q", [0]), "is empty (0 bytes)")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                for member in members(data, size):
                    split = split_name(member.name)
                    if split is not None and split[0] != key:
                        key = split[0]
                        starts.append(member.header)
                    end = member.start + (member.size + BLOCK - 1) // BLOCK * BLOCK
            except ValueError as error:
                problem = str(error)
                cut = split_name(error.name) if isinstance(error, CutOff) and error.name else None
                if starts and cut is not None and cut[0] == key:
                    end = starts.pop()  # the sample that the file ends in
    starts.append(end)
    return Table(starts, problem)
