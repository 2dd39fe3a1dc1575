"""Files of the page: pending uploads, and a folder for every conversation.

All of them lie below one temporary folder, readable by this user only, which is removed when the page ends. Names of
folders are random: only those who know one can request its files.
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
from chatbridge.demo.fair_share import NO_OWNER, Owner
from chatbridge.inference.limits import MediaLimits
from chatbridge.processors.base import MediaError

PREFIX = "chatbridge-demo-"

UPLOAD_SECONDS = 1800.0
"""How long an uploaded file may stay in a text box before it has to be uploaded again."""

MAX_FILES = 64
"""Disk space for all users together, in files of the largest size allowed."""

MIN_SHARE = 256
"""A file counts at least as this fraction of the largest size, so that the number of files is bounded, too."""


class StoreFull(ValueError):
    """There is no space for another upload."""


@dataclass(eq=False)
class Upload:
    """Files that a user has sent, or is sending.

    Attributes:
        last_received: when data came last (`time.monotonic`). dropped: whether it was removed.
    """

    owner: Owner
    folder: Path
    last_received: float
    dropped: bool = False


class FileStore:
    """The temporary folder.

    Args:
        limits: of one file; they bound the total, too.
        upload_seconds: after which an upload that was never sent is removed.

    Attributes:
        root: the folder. uploads: pending ones, by folder. max_bytes: of all users together.
    """

    def __init__(self, limits: MediaLimits, upload_seconds: float = UPLOAD_SECONDS):
        self.limits, self.upload_seconds = limits, upload_seconds
        self.max_bytes = MAX_FILES * limits.max_bytes
        self.root = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        self._conversations, self._shared = self.root / "conversations", self.root / "shared"
        self._conversations.mkdir()
        self._shared.mkdir()
        self.uploads: dict[Path, Upload] = {}

    def upload_folder(self, owner: Owner = NO_OWNER, size: int | None = None) -> Path:
        """A new folder for the files of one upload, which `uploads` then knows.

        Args:
            size: in bytes; None for the largest size allowed.

        Raises:
            StoreFull: when the files of all users leave no space.
        """
        self.check_room(self.limits.max_bytes if size is None else size)
        folder = self.root / "uploads" / secrets.token_hex(16)
        folder.mkdir(parents=True)
        self.uploads[folder] = Upload(owner, folder, time.monotonic())
        return folder

    def check_room(self, size: int) -> None:
        """Raise StoreFull when there is no room for so many bytes."""
        if self.usage().total() + size > self.max_bytes:
            raise StoreFull("this server has no room for further files at the moment; try again in a few minutes")

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

    def add_shared(self, file: Path) -> Path:
        """A copy of an example's file, which stays as long as the page and which everybody may see."""
        folder = self._shared / secrets.token_hex(8)
        folder.mkdir()
        return Path(shutil.copy(file, folder / file.name))

    def usage(self) -> Counter[Path]:
        """Bytes in use, by the folder of an upload or a conversation (or of what gradio has written)."""
        used: Counter[Path] = Counter()
        seen: set[int] = set()  # links count once
        for file, status in _files(self.root):
            first, *rest = file.relative_to(self.root).parts
            if first != self._shared.name and status.st_ino not in seen:
                seen.add(status.st_ino)
                ours = first in ("uploads", self._conversations.name)
                place = self.root / first / rest[0] if ours else self.root / first
                used[place] += max(status.st_size, self.limits.max_bytes // MIN_SHARE)
        return used

    def find(self, file: str | Path) -> Path | None:
        """A file of this store by its absolute path; None for other and missing files."""
        path = Path(file)
        try:
            ours = path.is_absolute() and path.resolve(strict=True) == path and path.is_relative_to(self.root)
            return path if ours and irregular(path.stat()) is None else None
        except (OSError, ValueError, RuntimeError):  # missing, malformed, or a loop of links
            return None

    def take(self, file: str | Path, folder: Path) -> Path:
        """Move an upload into a folder of its own within a conversation's.

        Args:
            file: as the browser names it. folder: of the conversation; files that lie there already are not moved.

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
            return Path(shutil.copy(path, target)) if path.is_relative_to(self._shared) else path.rename(target)
        except FileNotFoundError:  # removed by `sweep`, or with its conversation
            raise MediaError(path.name, "is not here any more; upload it again") from None

    def sweep(self, now: float | None = None) -> None:
        """Remove uploads that were not sent for too long."""
        oldest = (time.time() if now is None else now) - self.upload_seconds
        for file, status in _files(self.root):
            ours = file.is_relative_to(self._conversations) or file.is_relative_to(self._shared)
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
