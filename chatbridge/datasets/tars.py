"""What is in a tar, from its headers: one reader for files, parts of files and streams, and one rule for samples.

A sample is the run of members that share a name up to its first dot: ``0017.jpg``, ``0017.json``.
Sources: POSIX.1-2001 (ustar and pax headers), GNU tar's manual (long names, base-256 numbers), the webdataset naming
convention. A tar is anybody's: nothing is unpacked, and no header makes this read or keep more than it may.
"""

from __future__ import annotations

import mmap
import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from chatbridge.common.documents import open_regular

BLOCK = 512

LARGEST_HEADER = 1 << 20
"""Bytes of an extended header or a long name."""

LARGEST_MEMBER = 1 << 30
"""Bytes of a medium that is read from a tar; all members of a streamed sample together may have as many."""

TEXTS = ("json", "txt")
"""Endings of what a sample's annotation is in."""

LARGEST_TEXT = 1 << 24
"""Bytes of a sample's annotation."""

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
"""What compressed files begin with."""

_REGULAR = (b"0", b"\0", b"7")
_EXTENDED, _LONG_NAME, _SPARSE, _PASSED_OVER = (b"x", b"X"), b"L", b"S", (b"g", b"K")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Links, devices, folders and pipes: whatever their size field says, no bytes follow."""

_REST, _PIECE = 1 << 26, 1 << 20
"""How much behind an end mark is looked at, and at once."""

_PAX_RECORD = re.compile(rb"(\d{1,9}) ([^=]+)=")
_NO_FOLDER = re.compile(r"(^|/)(__[^/]*__|__MACOSX|PaxHeaders?(\.\d+)?)(/|$)")
_NO_FILE = ("Thumbs.db", "desktop.ini")
"""What archivers and desktops leave between samples, and, by webdataset's rule, what is about the shard itself."""


class Member(NamedTuple):
    """A regular file in a tar: its name, where its header starts, where its bytes start, and how many they are."""

    name: str
    header: int
    start: int
    size: int

    @property
    def end(self) -> int:
        """Where the next header starts."""
        return self.start + _padded(self.size)


class Bytes(Protocol):
    """What gives bytes by slices: bytes, a memory-mapped file, or something that reads them when it is asked.

    Slices are asked for from front to back; what reaches beyond the end is cut there.
    """

    def __getitem__(self, part: slice) -> bytes: ...


class CutOff(ValueError):
    """A tar that is shorter than it should be.

    Attributes:
        name: of the member that it ends in; None where it ends between members.
    """

    def __init__(self, reason: str, name: str | None = None):
        super().__init__(reason)
        self.name = name


def members(data: Bytes, end: int | None = None, part: bool = False) -> Iterator[Member]:
    """The regular files of a tar.

    Args:
        end: how many bytes there are; None where that is not known (a stream, which is read to its end).
        part: the bytes are a part of a tar that was looked through before: they have no end mark, and their headers
            are taken at their word.

    Raises:
        ValueError: at the place where the tar is cut off or damaged, or holds what no shard has.
    """
    at, header = 0, 0
    name: str | None = None
    size: int | None = None
    while end is None or at + BLOCK <= end:
        block = data[at : at + BLOCK]
        if len(block) < BLOCK:
            break
        if block[0] == 0 and not block.strip(b"\0"):
            if not part:
                _check_rest(data, at + BLOCK)
            return
        if not part:
            _check_header(block, at)
        kind, start = block[156:157], at + BLOCK
        has_data = kind not in _WITHOUT_DATA
        is_header = kind in _EXTENDED or kind == _LONG_NAME or kind in _PASSED_OVER
        length = _number(block[124:136], at) if has_data else 0
        if size is not None and has_data and not is_header:  # sizes from 8 GiB up stand in the extended header
            length = size
        after = start + _padded(length)
        if end is not None and after > end:
            reason = f"is cut off: a member at byte {at} needs {after} bytes, {end} are there"
            raise CutOff(reason, name or _name(block))
        if name is None and size is None:
            header = at
        if kind in _EXTENDED:
            name, size = _pax(_extended(data, start, length), at, name, size)
        elif kind == _LONG_NAME:
            name = _text(_extended(data, start, length).rstrip(b"\0"))
        elif kind == _SPARSE:
            raise ValueError(f"holds a sparse file at byte {at}; pack it again without --sparse")
        elif not is_header:
            if kind in _REGULAR:
                yield Member(name or _name(block), header, start, length)
            name = size = None
        at = after
    if not part:
        raise CutOff(f"is cut off: it has no end mark (after {at} bytes)")


def split_name(name: str) -> tuple[str, str] | None:
    """(key, ending) of a member by webdataset's rule, or None for one that belongs to no sample.

    To none, too, belong hidden files (``.DS_Store``, ``._0017.jpg``) and pax headers that were unpacked as files:
    standing between a sample's members they would tear it apart.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    if not dot or not stem or ending[:2] == "__" or stem[:2] == stem[-2:] == "__" or base in _NO_FILE:
        return None
    if slash and _NO_FOLDER.search(folder):
        return None
    return folder + slash + stem, ending.lower()


@dataclass
class SampleOffsets:
    """Where the samples of a local tar begin.

    Attributes:
        starts: byte offset of every sample, and the end of the last one.
        problem: what is wrong with the file behind the last whole sample; None for a whole tar.
    """

    starts: array
    problem: str | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1


def scan(path: str | Path) -> SampleOffsets:
    """Where the samples of a local tar begin, from its headers alone; of one that is cut off, its whole samples.

    Raises:
        OSError: a file that cannot be opened. ValueError: a pipe or a device.
    """
    starts, problem, key, end = array("q"), None, None, 0
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return SampleOffsets(array("q", [0]), "is empty (0 bytes)")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                for member in members(data, size):
                    split = split_name(member.name)
                    if split is not None and split[0] != key:
                        key = split[0]
                        starts.append(member.header)
                    end = member.end
            except ValueError as error:
                problem = str(error)
                cut = split_name(error.name) if isinstance(error, CutOff) and error.name else None
                if starts and cut is not None and cut[0] == key:
                    end = starts.pop()  # the sample that the file ends in
    starts.append(end)
    return SampleOffsets(starts, problem)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _check_rest(data: Bytes, start: int) -> None:
    """Raise ValueError where an end mark is followed by something: readers would never see it."""
    for at in range(start, start + _REST, _PIECE):
        piece = data[at : at + _PIECE]
        if piece.strip(b"\0"):
            raise ValueError(f"has more behind its end mark at byte {start - BLOCK}: are these two tars in a row?")
        if len(piece) < _PIECE:
            return


def _check_header(block: bytes, at: int) -> None:
    """Raise ValueError where a block's checksum says that it is no header."""
    field = block[148:156]
    try:
        stated = int(field.strip(b" \0"), 8)
    except ValueError:
        stated = -1
    rest = block[:148] + b" " * 8 + block[156:]  # its own field is taken for spaces
    if stated == sum(rest) or stated == sum(byte - 256 * (byte > 127) for byte in rest):  # signed: old archivers
        return
    for mark, kind in COMPRESSED.items():
        if at == 0 and block.startswith(mark):
            raise ValueError(f"is compressed ({kind}); under a name such as x.tar.gz it is read as that")
    raise ValueError(f"is damaged: no member header at byte {at}")


def _number(field: bytes, at: int) -> int:
    """A number as headers have it: octal or, from 8 GiB up, GNU tar's base 256."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    try:
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:  # an 8 or a 9
        pass
    raise ValueError(f"is damaged: the member at byte {at} has no size")


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(name: bytes) -> str:
    """A name; where it is not UTF-8, as Latin-1: two names that differ must not become one."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("latin-1")


def _extended(data: Bytes, start: int, length: int) -> bytes:
    """The bytes of an extended header."""
    if length > LARGEST_HEADER:
        raise ValueError(f"is damaged: an extended header of {length} bytes at byte {start}")
    found = data[start : start + length]
    if len(found) < length:
        raise CutOff(f"is cut off: an extended header at byte {start} needs {length} bytes")
    return found


def _pax(records: bytes, header: int, name: str | None, size: int | None) -> tuple[str | None, int | None]:
    """(path, size) of an extended header: lines of the form ``<length of the line> <key>=<value>``."""
    at = 0
    while at < len(records) and records[at] != 0:
        found = _PAX_RECORD.match(records, at)
        end = at + int(found[1]) if found else 0
        if not found or found.end() >= end or records[end - 1 : end] != b"\n":
            raise ValueError(f"is damaged: the extended header at byte {header} is no list of records")
        key, value = found[2], records[found.end() : end - 1]
        if key.startswith(b"GNU.sparse."):
            raise ValueError(f"holds a sparse file at byte {header}; pack it again without --sparse")
        if key == b"path":
            name = _text(value)
        elif key == b"size":
            if not re.fullmatch(rb"\d{1,20}", value):
                raise ValueError(f"is damaged: the extended header at byte {header} has no size")
            size = int(value)
        at = end
    return name, size
