"""SIGTERM and SIGUSR1 become a checkpoint and a clean exit."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType

logger = logging.getLogger("chatbridge")

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignal:
    """While entered, the signals only set `received`; the loop stops at its next step.

    Args:
        grace_seconds: how long the run may take for its checkpoint after a signal. When they are over, the process
            ends with status 1, and the checkpoint before stays the latest. 0 waits as long as it takes.

    Attributes:
        received: the signal's name; "" before one came.
    """

    def __init__(self, grace_seconds: float):
        self.grace_seconds = grace_seconds
        self.received = ""
        self._timer: threading.Timer | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # Python takes handlers from no other
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received:
            return
        self.received = signal.Signals(number).name
        if self.grace_seconds:
            self._timer = threading.Timer(self.grace_seconds, self._give_up)
            self._timer.daemon = True
            self._timer.start()

    def _give_up(self) -> None:
        logger.error(
            "%s: no checkpoint within run.grace_seconds (%g s); the latest one before stays", self.received,
            self.grace_seconds,
        )  # fmt: skip
        os._exit(1)
