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


class FolderInUse(ValueError):
    """Another run writes to the folder."""


def check_folder(folder: str | Path) -> None:
    """Raise ValueError for a folder that could not be made, or not be written to. Leaves no trace."""
    folder = Path(folder)
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    told = f"run.output_dir: {folder} cannot be written"
    try:
        if not stat.S_ISDIR(os.stat(place).st_mode):
            raise ValueError(f"{told}: {place} is no folder; take another path")
        longest = os.pathconf(place, "PC_NAME_MAX")
        if any(len(os.fsencode(part)) > longest for part in folder.parts[len(place.parts) :]):
            raise ValueError(f"{told}: a name in it has more than {longest} bytes; take a shorter one")
        with tempfile.TemporaryFile(dir=place):
            pass
    except FileNotFoundError:
        raise ValueError(f"{told}: {place} is a link to nowhere; take another path") from None
    except OSError as error:
        raise ValueError(f"{told}: {place}: {error.strerror or error}; take another path") from None


class RunLock:
    """While it is held, no other process can hold the lock on the same folder.

    As a context it is taken at once where the folder exists. A run that leaves no folder if it cannot start calls
    `acquire` once it knows that it can.

    Args:
        folder: the run's.
        wanted: False does nothing: of the processes of a run, the first one holds the lock.
    """

    def __init__(self, folder: str | Path, wanted: bool = True):
        self.folder, self.wanted = Path(folder), wanted
        self._file: int | None = None

    def acquire(self, ending: float = ENDING_SECONDS, lease: float = LEASE_SECONDS) -> None:
        """Make the folder where it is not there, and take the lock; nothing happens where it is held already.

        Args:
            ending, lease: seconds to wait for a process of this host, or of another, that may have ended just now.

        Raises:
            FolderInUse: another run holds it. ValueError: the folder cannot be written.
        """
        if self._file is not None or not self.wanted:
            return
        check_folder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = str((self.folder / NAME).resolve())
        if path in _held:
            raise FolderInUse(f"{self.folder}: another run of this process writes there; take another run.output_dir")
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._wait(file, ending, lease)
            os.ftruncate(file, 0)
            os.pwrite(file, (json.dumps(_myself()) + "\n").encode(), 0)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        _held.add(path)

    def _wait(self, file: int, ending: float, lease: float) -> None:
        begun, told = time.monotonic(), False
        while not _locked(file):
            holder = _holder(file)
            here = holder.get("host") == socket.gethostname()
            if time.monotonic() - begun >= (ending if here or not holder else lease):
                raise FolderInUse(
                    f"{self.folder}: another run writes there{_words(holder)}; wait for its end, stop it, or take "
                    "another run.output_dir"
                )
            if not (here or told or not holder):
                logger.warning(
                    "%s: held by a run%s; waiting up to %g s for its end", self.folder, _words(holder), lease
                )
                told = True
            time.sleep(0.05)

    def release(self) -> None:
        if self._file is not None:
            _held.discard(str((self.folder / NAME).resolve()))
            os.close(self._file)  # the file stays: whoever waits has it open
            self._file = None

    def __enter__(self) -> RunLock:
        if self.folder.exists():
            self.acquire()
        elif self.wanted:
            check_folder(self.folder)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()


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
    began = _began(holder["pid"])
    return began is not None and began == holder.get("began")


def _began(pid: int) -> int | None:
    """When a process began, in ticks since the system's start; None for one that is not there."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])  # proc(5): field 22, behind a name of any sort
    except (OSError, ValueError, IndexError):
        return None


def _myself() -> dict:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": now, "began": _began(os.getpid())}


def _holder(file: int) -> dict:
    try:
        found = json.loads(os.pread(file, 4096, 0))
    except ValueError:  # being written, or not by us
        return {}
    return found if isinstance(found, dict) else {}


def _words(holder: dict) -> str:
    if not holder:
        return ""
    return f" (process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')})"
