"""Work for the tests of jobs: at module level and free of PyTorch, so that other processes start quickly."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from dataset_prep.prep.items import Drop, Item, PieceResult


@dataclass
class Shout:
    """Keeps every sample in capitals; leaves a trace per piece; dies, stops or refuses where it is told to."""

    trace: Path
    crash_on: str = ""
    stop_at: int = -1
    kill_at: int = -1
    refuse: str = ""

    def __call__(self, number: int, items: list[Item]) -> PieceResult:
        if number == self.stop_at:
            raise KeyboardInterrupt
        if number == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        part = PieceResult(read=len(items))
        for item in items:
            if item.id == self.crash_on:
                os._exit(11)
            if item.id == self.refuse:
                part.dropped.append(Drop(item.id, "refused", "as told", item.where))
            else:
                part.kept.append({"id": item.id, "text": item.entry["text"].upper()})
        with self.trace.open("a") as file:
            file.write(f"{number}\n")
        return part


def words(count: int) -> list[Item]:
    return [Item(f"w{n}", {"text": f"word {n} é"}, {}, f"list: row {n}") for n in range(count)]
