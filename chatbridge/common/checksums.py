"""SHA-256 of files, and the list of them beside a folder's files, as ``sha256sum`` writes and checks it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from chatbridge.common.documents import MISSING, DocumentError, open_regular, read_text

SUMS = "SHA256SUMS"


def sha256(file: str | Path) -> str:
    """Of a regular file's content, in hexadecimal. Raises OSError, DocumentError."""
    digest = hashlib.sha256()
    with open_regular(file) as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_sums(folder: Path) -> None:
    """List every file of a folder with its SHA-256 (``sha256sum -c SHA256SUMS`` checks it, too)."""
    files = sorted(file for file in folder.iterdir() if file.name != SUMS)
    (folder / SUMS).write_text("".join(f"{sha256(file)}  {file.name}\n" for file in files), encoding="utf-8")


def altered(folder: Path, names: Iterable[str] | None = None) -> str | None:
    """What differs between a folder's files and their list: the first of it, file and reason; "" when nothing does.

    Args:
        names: look at these files only.

    Returns:
        None where there is no list.
    """
    try:
        lines = read_text(folder / SUMS).splitlines()
    except DocumentError as error:
        return None if error.reason == MISSING else str(error)
    found = [re.fullmatch(r"([0-9a-f]{64})  ([^/]+)", line) for line in lines]
    if not found or not all(found):
        return f"{folder / SUMS}: is damaged"
    expected = {match[2]: match[1] for match in found}
    for name in expected if names is None else names:
        file = folder / name
        try:
            same = sha256(file) == expected.get(name)
        except DocumentError as error:
            return str(error)
        except OSError as error:
            return f"{file}: cannot be read ({error.strerror or error})"
        if not same:
            return f"{file}: is not what was written (its SHA-256 is not the one in {SUMS})"
    return ""
