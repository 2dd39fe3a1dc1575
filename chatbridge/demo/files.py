"""Files of the page: uploads that wait to be asked about, and a folder for every conversation.

All of it lies below one folder of the system's temporary folder, readable by this user only, which goes when the page
ends. KnownHosts of folders are drawn at random: who does not know one cannot ask for what lies in it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from chatbridge.common.documents import irregular
from chatbridge.demo.room import NOBODY, Owner
from chatbridge.inference.limits import MediaLimits
from chatbridge.processors.base import MediaError

PREFIX = "chatbridge-demo-"

WAITING_SECONDS = 1800.0
"""How long a file may lie in somebody's text box before it has to be uploaded again."""

MOST_FILES = 64
"""Disk space for all visitors together, in files of the largest size allowed."""

SMALLEST = 256
"""A file takes at least so small a part of the largest: names, too, take room."""


class Full(ValueError):
    """There is no room for another upload."""


@dataclass(eq=False)
class Upload:
    """Files that somebody has sent, or is sending.

    Attributes:
        owner: who. folder: of its own. touched: when something came last (`time.monotonic`).
        dropped: whether it had to go.
    """

    owner: Owner
    folder: Path
    touched: float
    dropped: bool = False


class Store:
    """The folder, and what becomes of what lies in it.

    Args:
        limits: of one file; they bound the whole, too.
        waiting_seconds: what was uploaded and not asked about is removed after so long.

    Attributes:
        root: the folder. uploads: those that wait. most: bytes of all visitors together.
    """

    def __init__(self, limits: MediaLimits, waiting_seconds: float = WAITING_SECONDS):
        self.limits, self.waiting_seconds = limits, waiting_seconds
        self.most = MOST_FILES * limits.max_bytes
        self.root = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        self._conversations, self._kept = self.root / "conversations", self.root / "kept"
        self._conversations.mkdir()
        self._kept.mkdir()
        self.uploads: dict[Path, Upload] = {}

    def upload_folder(self, owner: Owner = NOBODY, size: int | None = None) -> Path:
        """A new folder for the files of one upload, which `uploads` then knows.

        Args:
            owner: who sends them. size: bytes of them; None for one of the largest size.

        Raises:
            Full: when all visitors' files together leave no room.
        """
        self.check_room(self.limits.max_bytes if size is None else size)
        folder = self.root / "uploads" / secrets.token_hex(16)
        folder.mkdir(parents=True)
        self.uploads[folder] = Upload(owner, folder, time.monotonic())
        return folder

    def check_room(self, size: int) -> None:
        """Raise Full when there is no room for so many bytes."""
        if self.usage().total() + size > self.most:
            raise Full("this server has no room for further files at the moment; try again in a few minutes")

    def drop(self, upload: Upload) -> None:
        """Remove an upload."""
        upload.dropped = True
        self.uploads.pop(upload.folder, None)
        self.remove(upload.folder)

    def conversation_folder(self) -> Path:
        """A new folder for the media of one conversation."""
        folder = self._conversations / secrets.token_hex(16)
        folder.mkdir()
        return folder

    def is_conversation(self, folder: Path) -> bool:
        """Whether a folder is one for a conversation."""
        return folder.parent == self._conversations

    def keep(self, file: Path) -> Path:
        """A copy that stays as long as the page and that every visitor may see: of an example's file."""
        folder = self._kept / secrets.token_hex(8)
        folder.mkdir()
        return Path(shutil.copy(file, folder / file.name))

    def usage(self) -> Counter[Path]:
        """Bytes that are taken, by the folder of an upload or a conversation (or what else has come in)."""
        taken: Counter[Path] = Counter()
        seen: set[int] = set()  # a video that is played under another name is there once
        for file, status in _files(self.root):
            first, *rest = file.relative_to(self.root).parts
            if first != self._kept.name and status.st_ino not in seen:
                seen.add(status.st_ino)
                ours = first in ("uploads", self._conversations.name)
                place = self.root / first / rest[0] if ours else self.root / first
                taken[place] += max(status.st_size, self.limits.max_bytes // SMALLEST)
        return taken

    def find(self, file: str | Path) -> Path | None:
        """A file of this folder by its whole name; None for what lies elsewhere, is no file, or is not there."""
        path = Path(file)
        try:
            ours = path.is_absolute() and path.resolve(strict=True) == path and path.is_relative_to(self.root)
            return path if ours and irregular(path.stat()) is None else None
        except (OSError, ValueError, RuntimeError):  # not there, no name of a file, links in a circle
            return None

    def take(self, file: str | Path, folder: Path) -> Path:
        """Move an upload into a conversation's folder, under a folder of its own.

        Args:
            file: as the browser names it. folder: of the conversation; what lies there already stays where it is.

        Raises:
            MediaError: for a file that was not uploaded here, or is no longer there.
        """
        path, name = self.find(file), Path(file).name
        if path is None or (path.is_relative_to(self._conversations) and not path.is_relative_to(folder)):
            raise MediaError(name[:100], "is not here (any more); upload it again")
        if path.is_relative_to(folder):
            return path
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
        for upload in list(self.uploads.values()):
            if not upload.folder.exists():
                self.drop(upload)

    def remove(self, place: Path) -> None:
        """Remove a folder (or file) of this store's."""
        if place.is_file():
            place.unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)

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
