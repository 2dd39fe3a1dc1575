"""A rank that hangs is named, with its stack, and ends, so that torchrun can restart the group."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import threading
import time
from pathlib import Path

import torch.distributed as dist

from chatbridge.common.logging import EventLog

logger = logging.getLogger("chatbridge")

EXIT_STATUS = 1


class Watchdog:
    """Watches how long ago the loop last reported progress, here and on the other ranks.

    When this rank has made no progress for `seconds`, the stacks of its threads are in ``hang_rank<r>.txt`` and the
    ranks that are furthest behind are named (the others only wait for them); then the process ends. The stacks are
    written by the interpreter's own timer, which works even where a library holds the interpreter's lock.

    Args:
        folder: the run folder. rank, world: this process among all. seconds: 0 does nothing.
    """

    def __init__(self, folder: Path, rank: int, world: int, seconds: float):
        self.file = folder / f"hang_rank{rank}.txt"
        self.rank, self.world, self.seconds = rank, world, seconds
        self._progress = (0, "start")
        self._last_progress = self._rearm_at = time.monotonic()
        self._closed = threading.Event()
        self._store = None
        self._known: dict[int, tuple[int, str]] = {}

    def __enter__(self) -> Watchdog:
        if not self.seconds:
            return self
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._out = self.file.open("a", encoding="utf-8")  # torchrun starts anew: the stacks of before stay
        if self.world > 1:
            # The store through which the ranks found each other; it answers while a collective is stuck.
            self._store = dist.PrefixStore("chatbridge_watchdog", dist.distributed_c10d._get_default_store())
        self.report_progress(0, "start")
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.seconds:
            return
        self._closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._out.close()
        if self.file.stat().st_size == 0:
            self.file.unlink()

    def report_progress(self, step: int, doing: str) -> None:
        """Called by the loop whenever it begins something."""
        self._progress, self._last_progress = (step, doing), time.monotonic()
        if self.seconds and self._last_progress >= self._rearm_at:
            # Setting the timer starts a thread: once in a while is enough, for as much longer.
            spare = self.seconds / 8
            self._rearm_at = self._last_progress + spare
            faulthandler.dump_traceback_later(self.seconds + spare, file=self._out, exit=False)

    def _watch(self) -> None:
        while not self._closed.wait(pause := min(self.seconds / 8, 10.0)):
            self._publish()
            still = time.monotonic() - self._last_progress
            if still > self.seconds / 2:  # somebody may give up soon, and take the store along
                self._read_others()
            if still > 9 / 8 * self.seconds + pause:  # the stacks are written by now
                try:
                    self._report(still)
                    time.sleep(pause)  # the others may still be asking the store, which ends with its process
                finally:
                    os._exit(EXIT_STATUS)

    def _publish(self) -> None:
        if self._store is not None:
            try:
                self._store.set(str(self.rank), json.dumps(self._progress))
            except RuntimeError:  # the process that holds the store is gone
                self._store = None

    def ranks_behind(self) -> str | None:
        """Which ranks are furthest behind, in words; None where none is behind the others.

        For whoever gives up first: a collective that fails names an address, not the rank that did not come.
        """
        if not self.seconds:
            return None
        places = self._all_progress()
        steps = {rank: place[0] for rank, place in places.items()}
        behind = [rank for rank in places if steps[rank] == min(steps.values())]
        if len(behind) == len(places):
            # All at the same step: those that compute wait for those that do something else.
            behind = [rank for rank, place in places.items() if place[1] != COMPUTING]
        if not behind or len(behind) == len(places):
            return None
        return ", ".join(f"rank {rank} ({places[rank][1]}, step {places[rank][0]})" for rank in behind)

    def _report(self, still: float) -> None:
        step, doing = self._progress
        text = f"rank {self.rank} has stood still for {still:.0f} s ({doing}, step {step})"
        behind = self.ranks_behind()
        text += f"; furthest behind: {behind}" if behind else "; so have all ranks" if self.world > 1 else ""
        logger.error("%s; stacks in %s", text, self.file)
        if self.rank == 0:
            EventLog(self.file.parent).write(step, "hang", text)

    def _all_progress(self) -> dict[int, tuple[int, str]]:
        """Where every rank was last heard to be; the store may be gone by now, and its process with it."""
        self._read_others()
        silent = (0, "not heard from")
        return {rank: self._known.get(rank, silent) for rank in range(self.world)} | {self.rank: self._progress}

    def _read_others(self) -> None:
        store = self._store
        try:
            for rank in range(self.world) if store is not None else ():
                if rank != self.rank and store.check([str(rank)]):
                    self._known[rank] = tuple(json.loads(store.get(str(rank))))
        except RuntimeError:  # as in `_publish`; what was read before remains
            self._store = None


COMPUTING, READING, SAVING, VALIDATING = "computing", "reading", "saving", "validating"
"""What a loop may be doing; in `COMPUTING`, ranks wait for each other."""
