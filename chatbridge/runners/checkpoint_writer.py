"""Checkpoints beside the training: a copy in host memory is taken at once, files are written by a thread."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatbridge.common.checkpoint import Retention, save_checkpoint

logger = logging.getLogger("chatbridge")


@dataclass(frozen=True)
class Snapshot:
    """All of a checkpoint, on the CPU and no longer changed by training."""

    step: int
    weights: dict[str, Tensor]
    trainer: dict[str, Any]
    config: str
    best: bool = False


class CheckpointWriter:
    """Writes checkpoints, one at a time, in the background unless asked not to.

    A checkpoint that cannot be written (a full disk) does not end a run of days: it is reported, the one before
    stays the latest, and the next is tried. The last one of a run must succeed.

    Args:
        folder: the run folder. retention: which checkpoints stay. background: write in a thread.
        on_event: called with (step, event, text) for every checkpoint written or failed, from the writing thread.

    Attributes:
        blocked_seconds: seconds for which the last `save` kept its caller. write_seconds: seconds of the last write.
    """

    def __init__(self, folder: Path, retention: Retention, background: bool, on_event: Callable[[int, str, str], None]):
        self.folder, self.retention, self.background, self.on_event = folder, retention, background, on_event
        self.blocked_seconds = self.write_seconds = 0.0
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def save(self, snapshot: Callable[[Callable[[Any], Any]], Snapshot]) -> None:
        """Take a copy of the state and write it; waits for the write before, whose memory is used again.

        Args:
            snapshot: makes a `Snapshot`; given a function that copies tensors (also nested ones) to the host.
        """
        started = time.perf_counter()
        self.join()
        taken = snapshot(self._copy)
        if self.background:
            self._thread = threading.Thread(target=self._write, args=(taken,), name="checkpoint")
            self._thread.start()
        else:
            self._write(taken)
        self.blocked_seconds = time.perf_counter() - started

    def join(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> None:
        """Wait for the last one. Raises what kept it from being written (CheckpointError), if something did."""
        self.join()
        if self._error is not None:
            raise self._error

    def _write(self, snapshot: Snapshot) -> None:
        started = time.perf_counter()
        try:
            folder = save_checkpoint(
                self.folder, snapshot.step, snapshot.weights, snapshot.trainer, snapshot.config, self.retention,
                snapshot.best,
            )  # fmt: skip
            self.write_seconds = time.perf_counter() - started
            self.on_event(snapshot.step, "checkpoint", f"{folder.name}, written in {self.write_seconds:.1f} s")
            self._error = None
        except Exception as error:  # whatever it is: nobody else would hear of it from a thread
            self._error = error
            logger.error("checkpoint of step %d: %s", snapshot.step, error, exc_info=not isinstance(error, ValueError))
            with contextlib.suppress(OSError):  # a full disk takes no event either
                self.on_event(snapshot.step, "checkpoint_failed", str(error))

    def _copy(self, value: Any, at: tuple[Any, ...] = ()) -> Any:
        """The same nest of values with every tensor copied into host memory that is kept for the next time."""
        if isinstance(value, dict):
            return {key: self._copy(inner, (*at, key)) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._copy(inner, (*at, number)) for number, inner in enumerate(value)]
        if not isinstance(value, Tensor):
            return value
        buffer = self._buffers.get(at)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._buffers[at] = buffer
        return buffer.copy_(value.detach())
