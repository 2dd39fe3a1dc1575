"""Training runs as processes of their own, quick to start, that a test may kill, stop and look at.

Processes are forked from the test, which has imported everything already: a run starts in a fraction of a second. What
torchrun does besides (rendezvous, restarts) is tested with torchrun itself.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import multiprocessing.util
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

import train
from chatbridge.common.checkpoint import find_latest, load_trainer, load_weights
from tests.patience import PATIENCE
from tests.tiny import json_lines

FORK = multiprocessing.get_context("fork")


SAME = ("step", "loss", "losses", "dataset", "ids", "tokens", "samples", "lr", "grad_norm", "replaced", "drawn")
"""What two runs that are one have in common, step by step."""


class Run:
    """``train.py`` with `arguments` on `world` processes that have begun.

    Args:
        before: called in each process with its rank before training begins, to make something go wrong there.
    """

    def __init__(self, folder: Path, arguments: list[str], world: int = 1, before: Callable[[int], None] | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, port = folder, free_port()
        self.logs = [folder / f"log_rank{rank}.txt" for rank in range(world)]
        self.processes = [
            FORK.Process(target=_main, args=(rank, world, port, arguments, self.logs[rank], before))
            for rank in range(world)
        ]
        for process in self.processes:
            process.start()
        # After a failed test nobody else does, and Python waits for its children before it ends.
        multiprocessing.util.Finalize(None, self.kill, exitpriority=0)

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """Exit statuses, a killed process' as minus the signal. Fails when it takes longer."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.1, end - time.monotonic()))
        alive = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        if alive:
            self.kill()
            raise AssertionError(f"ranks {alive} did not end within {seconds} s:\n{self.text()[-3000:]}")
        return [process.exitcode for process in self.processes]

    def send(self, number: int, rank: int | None = None) -> None:
        """A signal to one process, or to all."""
        for one in self.processes if rank is None else [self.processes[rank]]:
            if one.is_alive():
                os.kill(one.pid, number)

    def kill(self) -> None:
        """SIGKILL to all: nothing is said goodbye to."""
        self.send(signal.SIGKILL)
        for process in self.processes:
            process.join()

    @property
    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def until(self, condition: Callable[[], Any], seconds: float = PATIENCE) -> bool:
        """Wait for something; False when the run ended before it came true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return True
            if not self.alive:
                return False
            time.sleep(0.0005)
        raise AssertionError(f"it did not happen within {seconds} s:\n{self.text()[-3000:]}")

    def text(self) -> str:
        return "\n".join(log.read_text(errors="replace") for log in self.logs if log.exists())


def _main(
    rank: int, world: int, port: int, arguments: list[str], log: Path, before: Callable[[int], None] | None
) -> None:
    with log.open("a", buffering=1) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        sys.stdout = sys.stderr = out
        for state in (AcceleratorState, PartialState, GradientState):  # of runs in the test's own process
            state._shared_state.clear()
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if world > 1 else {}
        if world > 1:
            for name, value in (
                ("RANK", rank),
                ("LOCAL_RANK", rank),
                ("WORLD_SIZE", world),
                ("LOCAL_WORLD_SIZE", world),
            ):
                os.environ[name] = str(value)
        torch.set_num_threads(1)
        gc.freeze()  # what was inherited is not walked over, which would copy every page of it
        status = 1
        try:
            if before is not None:
                before(rank)
            status = train.main(arguments)
            with contextlib.suppress(Exception):
                if torch.distributed.is_initialized():
                    torch.distributed.destroy_process_group()
        except BaseException:
            traceback.print_exc()
        out.flush()
        os._exit(status)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def metrics(output: Path, split: str = "train") -> list[dict[str, Any]]:
    """The logged steps of a run."""
    rows = json_lines(output / "metrics.jsonl")
    return [row for row in rows if row["split"] == split]


def events(output: Path) -> list[str]:
    """What happened to a run, by name."""
    file = output / "events.jsonl"
    return [row["event"] for row in json_lines(file)] if file.exists() else []


def arguments(yaml, output, *options: str) -> list[str]:
    return ["--cfg-path", str(yaml), "--options", f"run.output_dir={output}", *options]


def assert_same(one, two) -> None:
    """Steps and final weights, bit for bit."""
    assert [[row[k] for k in SAME] for row in metrics(one)] == [[row[k] for k in SAME] for row in metrics(two)]
    assert find_latest(one).name == find_latest(two).name
    a, b = load_weights(find_latest(one)), load_weights(find_latest(two))
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    for x, y in zip(*(load_trainer(find_latest(f))["optimizers"] for f in (one, two)), strict=True):
        for number, state in x["state"].items():
            assert all(torch.equal(value, y["state"][number][name]) for name, value in state.items())
