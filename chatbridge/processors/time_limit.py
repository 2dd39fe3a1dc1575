"""A limit on the time that a decoder may take.

Decoders can loop for ever on a damaged file, inside native code, where no signal and no exception reaches them. They
are called in a second thread therefore, and left alone there when their time is over. That costs about 20 microseconds:
what cannot take long by its kind and size (`AT_ONCE_PIXELS`, `AT_ONCE_BYTES`) is decoded where it is asked for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from chatbridge.processors.base import MediaError

READ_SECONDS = 120.0
"""What is allowed by default for videos and sounds: long ones from slow disks take some seconds."""

PICTURE_SECONDS = 60.0
"""The same for pictures: as large as they may be, they take two or three, and more where others want the processor."""

AT_ONCE_PIXELS = 4_000_000
"""A JPEG of so many pixels, each counted as often as there are scans, takes some hundredths of a second."""

AT_ONCE_BYTES = 1 << 26
"""Samples that are stored as such are only copied."""

T = TypeVar("T")
_own = threading.local()


def within(seconds: float, name: str, function: Callable[..., T], *args: Any) -> T:
    """What a function returns or raises, if it does so in time.

    Raises:
        MediaError: naming the medium, when it takes longer. The function goes on by itself and keeps what it holds.
    """
    helper = getattr(_own, "helper", None)
    if helper is None or helper.process != os.getpid():  # threads do not survive a fork
        helper = _own.helper = _Helper()
    helper.jobs.put((function, args))
    try:
        result, error = helper.results.get(timeout=seconds)
    except Empty:
        _own.helper = None
        raise MediaError(name, f"timed out: it was not decoded within {seconds:g} s") from None
    except BaseException:  # Ctrl-C: what comes of this job must not be taken for the next one's
        _own.helper = None
        raise
    if error is not None:
        raise error
    return result


class _Helper:
    """The second thread of one thread; it ends with the last job that it was given."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.jobs: SimpleQueue = SimpleQueue()
        self.results: SimpleQueue = SimpleQueue()
        threading.Thread(target=_work, args=(self.jobs, self.results), name="decoding", daemon=True).start()

    def __del__(self) -> None:
        self.jobs.put(None)


def _work(jobs: SimpleQueue, results: SimpleQueue) -> None:
    while (job := jobs.get()) is not None:
        function, args = job
        try:
            outcome = function(*args), None
        except BaseException as error:  # whatever it is, the caller waits for it
            outcome = None, error
        results.put(outcome)
        job = outcome = function = args = None  # frames and files are the caller's now
