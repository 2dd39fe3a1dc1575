"""Files of the page: uploads that wait to be asked about, and a folder for every conversation.

All of it lies below one folder of the system's temporary folder, readable by this user only, which goes when the page
ends. Names of folders are drawn at random: who does not know one cannot ask for what lies in it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from chatbridge.inference.limits import MediaLimits
from chatbridge.processors.base import MediaError

PREFIX = "chatbridge-demo-"

WAITING_SECONDS = 1800.0
"""How long a file may lie in somebody's text box before it has to be uploaded again."""

MOST_FILES = 64
"""Disk space for all visitors together, in files of the largest size allowed."""


class Full(ValueError):
    """There is no room for another upload."""


class Store:
    """The folder, and what becomes of what lies in it.

    Args:
        limits: of one file; they bound the whole, too.
        waiting_seconds: what was uploaded and not asked about is removed after so long.

    Attributes:
        root: the folder.
    """

    def __init__(self, limits: MediaLimits, waiting_seconds: float = WAITING_SECONDS):
        self.limits, self.waiting_seconds = limits, waiting_seconds
        self.root = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        self._conversations, self._kept = self.root / "conversations", self.root / "kept"
        self._conversations.mkdir()
        self._kept.mkdir()

    def upload_folder(self) -> Path:
        """A new folder for the files of one upload.

        Raises:
            Full: when all visitors' files together leave no room.
        """
        taken = sum(status.st_size for _, status in _files(self.root))
        if taken + self.limits.max_bytes > MOST_FILES * self.limits.max_bytes:
            raise Full("this server has no room for further files at the moment; try again in a few minutes")
        folder = self.root / "uploads" / secrets.token_hex(16)
        folder.mkdir(parents=True)
        return folder

    def conversation_folder(self) -> Path:
        """A new folder for the media of one conversation."""
        folder = self._conversations / secrets.token_hex(16)
        folder.mkdir()
        return folder

    def keep(self, file: Path) -> Path:
        """A copy that stays as long as the page and that every visitor may see: of an example's file."""
        folder = self._kept / secrets.token_hex(8)
        folder.mkdir()
        return Path(shutil.copy(file, folder / file.name))

    def take(self, file: str | Path, folder: Path) -> Path:
        """Move an upload into a conversation's folder, under a folder of its own.

        Args:
            file: as the browser names it. folder: of the conversation; what lies there already stays where it is.

        Raises:
            MediaError: for a file that was not uploaded here, or is no longer there.
        """
        path = Path(os.path.abspath(file))
        if path.is_relative_to(folder) and path.is_file():
            return path
        foreign = path.is_relative_to(self._conversations) or not path.is_relative_to(self.root)
        if foreign or path.is_symlink() or not path.is_file():
            raise MediaError(path.name, "is not here (any more); upload it again")
        target = folder / secrets.token_hex(8) / path.name
        target.parent.mkdir(parents=True)
        try:
            return Path(shutil.copy(path, target)) if path.is_relative_to(self._kept) else path.rename(target)
        except FileNotFoundError:  # swept away, or its conversation was
            raise MediaError(path.name, "is not here any more; upload it again") from None

    def sweep(self, now: float | None = None) -> None:
        """Remove uploads that nobody asked about for too long."""
        oldest = (time.time() if now is None else now) - self.waiting_seconds
        for file, status in _files(self.root):
            ours = file.is_relative_to(self._conversations) or file.is_relative_to(self._kept)
            if not ours and status.st_ctime < oldest:
                file.unlink(missing_ok=True)
        for folder, _, _ in os.walk(self.root / "uploads", topdown=False):
            with suppress(OSError):  # not empty, or gone already
                if os.stat(folder).st_mtime < oldest:
                    os.rmdir(folder)

    def remove(self, folder: Path) -> None:
        """Remove a folder that this store gave."""
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root, ignore_errors=True)


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All files below a folder, while others come and go."""
    for where, _, names in os.walk(folder):
        for name in names:
            file = Path(where, name)
            with suppress(FileNotFoundError):
                yield file, file.stat()
