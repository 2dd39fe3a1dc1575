"""The files that weights and a trainer's state come in, and what is looked at before anybody else's code reads them.

Damaged or made up, such a file may claim anything: gigabytes behind a few compressed bytes, a header without end, a
tar archive that is read in circles. Claims are held against the size of the file, and kinds that nobody uses any more
are refused.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from chatbridge.common.documents import open_regular

ZIP = b"PK\x03\x04"
MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The number that opens PyTorch's files of before 1.6, as a pickle."""

MAX_HEADER = 32 * 2**20
"""Bytes of names and shapes in a safetensors file; of the largest published ones they are a few hundred kilobytes."""

MAX_PICKLE = 4 * 2**20
"""Bytes of a pickle without its tensors, a few hundred for each. A byte may cost microseconds, and a hundred others."""

FILLER, FILLED = b"\nbytearray\n", "its pickle asks for bytes without content (bytearray), which no weights are"
"""The one call that PyTorch lets a pickle make for memory of any size, and what is said of it."""


class DamagedFile(ValueError):
    """A file that is not what its kind is, or claims what it cannot hold."""


def is_zip(file: Path) -> bool:
    """Whether PyTorch will read a file as a zip archive."""
    with open_regular(file) as handle:
        return handle.read(len(ZIP)) == ZIP


def check_header(file: Path) -> None:
    """Raise ValueError when a safetensors file announces a header longer than any, or than itself."""
    with open_regular(file) as handle:
        start = handle.read(8)
    if len(start) < 8:
        raise ValueError("it is no safetensors file, having less than 8 bytes")
    length = struct.unpack("<Q", start)[0]
    if length > min(MAX_HEADER, file.stat().st_size):
        raise ValueError(f"it announces a header of {length:,} bytes and has {file.stat().st_size:,}")


def check_zip(file: Path, whole: bool, bounded: bool = True) -> None:
    """Raise DamagedFile or BadZipFile for an archive that PyTorch did not write: compressed, or larger than itself.

    Args:
        whole: compare the checksums of its members, for which it is read through.
        bounded: its pickle may have `MAX_PICKLE` bytes; a trainer's state grows with the run.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        packed = next((member.filename for member in members if member.compress_type != zipfile.ZIP_STORED), None)
        if packed is not None:
            raise DamagedFile(f"its member '{packed}' is compressed, which PyTorch never does; save it anew")
        if sum(member.file_size for member in members) > file.stat().st_size:
            raise DamagedFile("its members are larger together than the file")
        for member in (member for member in members if "/data/" not in member.filename):  # there are the tensors
            pickled = member.filename.endswith(".pkl")
            if member.file_size > MAX_PICKLE and (bounded or not pickled):
                what = "pickle" if pickled else f"member '{member.filename}'"
                raise DamagedFile(f"its {what} has more than {MAX_PICKLE:,} bytes")
            if pickled and FILLER in archive.read(member):
                raise DamagedFile(FILLED)
        bad = archive.testzip() if whole else None
    if bad is not None:
        raise DamagedFile(f"the checksum of '{bad}' is wrong; download them again")


def load_pickled(file: Path) -> Any:
    """What `torch.load` makes of a file, tensors and plain values only, after `check_zip`."""
    if is_zip(file):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    with open_regular(file) as handle:
        if MAGIC not in handle.read(64):
            raise ValueError("it is neither a zip archive nor a pickle of PyTorch's")
        handle.seek(0)
        return torch.load(_LegacyFile(handle), map_location="cpu", weights_only=True)


class _LegacyFile:
    """An open file for PyTorch's reader of old files, which without a file number never takes it for a tar archive.

    Tensors are read by `readinto`; all else is pickles.
    """

    def __init__(self, file: BinaryIO):
        self.readinto, self.seek, self.tell, self._file = file.readinto, file.seek, file.tell, file
        self._left = MAX_PICKLE

    def read(self, count: int = -1) -> bytes:
        data = self._file.read(self._left + 1 if count < 0 else min(count, self._left + 1))
        return self._counted(data)

    def readline(self) -> bytes:
        line = self._counted(self._file.readline(self._left + 1))
        if line == FILLER[1:]:
            raise DamagedFile(FILLED)
        return line

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise DamagedFile(f"its pickle has more than {MAX_PICKLE:,} bytes")
        return data
