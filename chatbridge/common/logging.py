"""What a program says on its terminal, and what happened to a run (its numbers: `chatbridge.common.loggers`)."""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from tqdm import tqdm

from chatbridge.common.documents import json_line


def setup_logging(main_process: bool) -> logging.Logger:
    """The package's logger: one line per message on stderr, warnings only on the other ranks."""
    forgiving_streams()
    logger = logging.getLogger("chatbridge")
    logger.setLevel(logging.INFO if main_process else logging.WARNING)
    if not logger.handlers:
        handler = _BesideProgressBars()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
        _own_lock()
        os.register_at_fork(after_in_child=_own_lock)
    return logger


def _own_lock() -> None:
    """tqdm's usual lock is a semaphore of all forked processes: one that is killed in a line would stop the others."""
    tqdm.set_lock(threading.RLock())


def forgiving_streams() -> None:
    """Let no character end a program: what a terminal's encoding lacks is written as an escape, and bytes that are no
    text in it are read as surrogates (see `documents.repaired`), as Python reads the names of files."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # replaced by something that is no such stream, or closed
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "backslashreplace")


class _BesideProgressBars(logging.Handler):
    """Writes a line to whatever stderr is at that moment, without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class EventLog:
    """``events.jsonl``: what happened to a run besides its steps, kept over restarts. Written from any thread.

    Args:
        folder: the run folder; None writes nothing (ranks other than the first).
    """

    def __init__(self, folder: Path | None):
        self._lock = threading.Lock()
        self._out = None
        if folder is not None:  # a file that an error names need not have a name that is text
            file = folder / "events.jsonl"
            self._out = file.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)

    def write(self, step: int, event: str, text: str) -> None:
        row = {"step": step, "time": datetime.now(timezone.utc).isoformat(timespec="seconds"), "event": event}
        with self._lock:
            if self._out is not None and not self._out.closed:
                self._out.write(json_line(row | {"text": text}))

    def close(self) -> None:
        if self._out is not None:
            self._out.close()
