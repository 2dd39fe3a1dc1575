"""The folder that a run writes to: whether it can be written, and that one run at a time writes to it.

Two runs in one folder would mix their logs and take each other's checkpoints for their own. A run therefore holds a
lock on a file there, by POSIX's record locks (fcntl(2)): the kernel lets go of them when the process ends, however
it ends, children that are forked (data-loader workers outlive a killed parent by seconds) do not hold them, and NFS
passes them on to its server, where flock(2) is often local to a host. What the file says is for people: who holds it.

On file systems without such locks only a process of the same host is noticed. Mounts that keep locks to themselves
(``nolock``, ``local_lock=all``) hide other hosts' runs.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import stat
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

logger = logging.getLogger("chatbridge")

NAME = "run.lock"

ENDING_SECONDS = 5.0
"""How long to wait for a process of this host that may be just ending."""

LEASE_SECONDS = 120.0
"""How long to wait for one of another host. The locks of a host that has died end with its lease, of 90 s as a rule."""

BUSY = (errno.EACCES, errno.EAGAIN)
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)

_held: set[str] = set()
"""Locks of this process: the kernel would grant them to it again, and let go of both when the second is closed."""


class FolderError(ValueError):
    """The folder cannot be written to, or another run does."""


def check_folder(folder: str | Path) -> None:
    """Raise FolderError for a folder that could not be made, or not be written to. Leaves no trace."""
    folder = Path(folder)
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    problem = f"run.output_dir: {folder} cannot be written"
    try:
        if not stat.S_ISDIR(os.stat(place).st_mode):
            raise FolderError(f"{problem}: {place} is no folder; take another path")
        longest = os.pathconf(place, "PC_NAME_MAX")
        if any(len(os.fsencode(part)) > longest for part in folder.parts[len(place.parts) :]):
            raise FolderError(f"{problem}: a name in it has more than {longest} bytes; take a shorter one")
        with tempfile.TemporaryFile(dir=place):
            pass
    except FileNotFoundError:
        raise FolderError(f"{problem}: {place} is a link to nowhere; take another path") from None
    except OSError as error:
        raise FolderError(f"{problem}: {place}: {error.strerror or error}; take another path") from None


class RunLock:
    """While it is held, no other process can hold the lock on the same folder.

    As a context it is taken at once where the folder exists. A run that leaves no folder if it cannot start calls
    `acquire` once it knows that it can.

    Args:
        folder: the run's.
        wanted: whether this process takes it: of a run's processes, the first one does.
        agree: given this process' problem ("" for none), gives those of all; every process of the run takes part.

    Raises (everywhere, where it is the first process that has the problem):
        FolderError: another run holds it, or the folder cannot be written.
    """

    def __init__(
        self, folder: str | Path, wanted: bool = True, agree: Callable[[list[str]], list[str]] = lambda own: own
    ):
        self.folder, self.wanted, self.agree = Path(folder), wanted, agree
        self._file: int | None = None

    def __enter__(self) -> RunLock:
        self._on_all_ranks(self._begin)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()

    def acquire(self) -> None:
        """Make the folder where it is not there, and take the lock; nothing happens where it is held already.

        A holder that may have ended just now is waited for.
        """
        self._on_all_ranks(self._take)

    def release(self) -> None:
        if self._file is not None:
            _held.discard(str((self.folder / NAME).resolve()))
            os.close(self._file)  # the file stays: whoever waits has it open
            self._file = None

    def _on_all_ranks(self, step: Callable[[], None]) -> None:
        problem = ""
        try:
            if self.wanted:
                step()
        except (FolderError, OSError) as error:
            problem = str(error)
        problems = [one for one in self.agree([problem]) if one]
        if problems:
            raise FolderError(problems[0])

    def _begin(self) -> None:
        check_folder(self.folder)
        if self.folder.exists():
            self._take()

    def _take(self) -> None:
        if self._file is not None:
            return
        check_folder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = str((self.folder / NAME).resolve())
        if path in _held:
            raise FolderError(f"{self.folder}: another run of this process writes there; take another run.output_dir")
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._wait(file)
            os.ftruncate(file, 0)
            os.pwrite(file, (json.dumps(_this_process()) + "\n").encode(), 0)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        _held.add(path)

    def _wait(self, file: int) -> None:
        begun, warned = time.monotonic(), False
        while not _locked(file):
            holder = _holder(file)
            elsewhere = bool(holder) and holder.get("host") != socket.gethostname()
            patience = LEASE_SECONDS if elsewhere else ENDING_SECONDS
            words = f"{self.folder}: another run writes there{_holder_text(holder)}"
            if time.monotonic() - begun >= patience:
                raise FolderError(f"{words}; wait for its end, stop it, or take another run.output_dir")
            if elsewhere and not warned:
                logger.warning("%s; waiting up to %g s for its end", words, patience)
                warned = True
            time.sleep(0.05)


def _locked(file: int) -> bool:
    """Whether this process has the lock now; where the file system knows none, whether no process here says it has."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            return False
        if error.errno not in WITHOUT_LOCKS:
            raise
        if _alive(_holder(file)):
            return False
        logger.warning("run.output_dir is on a file system without locks: see to it that no other host runs there")
    return True


def _alive(holder: dict) -> bool:
    """Whether a process of this host is the holder, and not another one that has its number by now."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    began = _start_time(holder["pid"])
    return began is not None and began == holder.get("began")


def _start_time(pid: int) -> int | None:
    """When a process began, in ticks since the system's start; None for one that is not there."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])  # proc(5): field 22, behind a name of any sort
    except (OSError, ValueError, IndexError):
        return None


def _this_process() -> dict:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": now, "began": _start_time(os.getpid())}


def _holder(file: int) -> dict:
    try:
        found = json.loads(os.pread(file, 4096, 0))
    except ValueError:  # being written, or not by us
        return {}
    return found if isinstance(found, dict) else {}


def _holder_text(holder: dict) -> str:
    if not holder:
        return ""
    return f" (process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')})"
