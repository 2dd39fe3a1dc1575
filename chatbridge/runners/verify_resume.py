"""``train.py --verify-resume K``: is this run, killed and resumed, the run that was not killed?

The run's first K steps are taken twice, by processes of their own: once without interruption, once killed (SIGKILL)
after the checkpoint in the middle and started again. Both must read the same samples, have the same losses and end
with the same weights and optimizer state, bit for bit.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from chatbridge.common.checkpoint import find_latest, load_trainer, load_weights
from chatbridge.common.documents import json_objects
from chatbridge.common.run_folder import RunLock

COMPARED = ("loss", "losses", "ids", "dataset", "tokens", "samples", "lr", "grad_norm")
"""Of every logged step."""


def verify_resume(script: str, cfg_path: str, options: Sequence[str], output: Path, steps: int, processes: int) -> int:
    """Run, kill, resume, compare; print what was found.

    Args:
        script: train.py. options: the user's own. output: the run folder; the two runs go below it.
        steps: K, at least 4. processes: on this machine, started by torchrun where more than one.

    Returns:
        0 when everything is equal, else 1.

    Raises:
        ValueError: for numbers that make no sense, and when a run fails.
    """
    if steps < 4:
        raise ValueError(f"--verify-resume {steps}: take at least 4 steps, so that there is something before and after")
    if processes < 1:
        raise ValueError(f"--processes {processes}: take at least one")
    if "RANK" in os.environ:
        raise ValueError("--verify-resume starts its own processes: run it without torchrun, with --processes N")
    folder = output / "verify_resume"
    with RunLock(folder) as lock:
        lock.acquire()
        return _verify(script, cfg_path, options, folder, steps, processes)


def _verify(script: str, cfg_path: str, options: Sequence[str], folder: Path, steps: int, processes: int) -> int:
    for run in (folder / "whole", folder / "resumed"):
        shutil.rmtree(run, ignore_errors=True)
        run.with_suffix(".log").unlink(missing_ok=True)
    runs = {name: _Run(script, cfg_path, options, folder / name, steps, processes) for name in ("whole", "resumed")}
    print(f"{steps} steps without interruption ...", flush=True)
    runs["whole"].finish()
    print(f"again, with a kill after the checkpoint of step {steps // 2} ...", flush=True)
    killed = runs["resumed"].kill_after(steps // 2)
    print(f"killed at step {killed}; resuming ...", flush=True)
    runs["resumed"].finish()
    differences = compare(folder / "whole", folder / "resumed")
    for line in differences[:20]:
        print(f"differs: {line}")
    what = f"{steps} steps on {processes} process{'es' * (processes > 1)}, killed at step {killed}"
    print(f"{what}: {'NOT the same' if differences else 'the same'} losses, samples, weights and optimizer state")
    return 1 if differences else 0


class _Run:
    """The user's run with a folder, an end and a checkpoint in the middle of its own."""

    def __init__(self, script: str, cfg_path: str, options: Sequence[str], output: Path, steps: int, processes: int):
        self.output, self.log = output, output.with_suffix(".log")
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        own = [
            f"run.output_dir={output}", f"run.stop_at={steps}", f"run.checkpoint_every={max(1, steps // 2)}",
            "run.resume=auto", "run.log_every=1", "run.loggers=[jsonl]", "run.deterministic=true",
        ]  # fmt: skip
        self.command = [sys.executable, *(launch if processes > 1 else []), script, "--cfg-path", cfg_path]
        self.command += ["--options", *options, *own]

    def start(self) -> subprocess.Popen:
        self.output.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            return subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)

    def finish(self) -> None:
        if self.start().wait() != 0:
            raise ValueError(f"the run failed; the end of its log, {self.log}:\n{_tail(self.log)}")

    def kill_after(self, step: int) -> int:
        """Kill all processes once the checkpoint of `step` is written and a further step was taken; the last step."""
        process = self.start()
        while find_latest(self.output) is None or _last_step(self.output) <= step:
            if process.poll() is not None:
                raise ValueError(f"the run ended before it was killed; the end of its log:\n{_tail(self.log)}")
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return _last_step(self.output)


def compare(one: Path, other: Path) -> list[str]:
    """What differs between two run folders, a line each."""
    found = []
    rows, others = _rows(one), _rows(other)
    for step in sorted(rows.keys() | others.keys()):
        if step not in rows or step not in others:
            found.append(f"step {step} is logged in one run only")
            continue
        for name in COMPARED:
            if rows[step].get(name) != others[step].get(name):
                found.append(f"step {step}, {name}: {rows[step].get(name)} and {others[step].get(name)}")
    folders = [find_latest(folder) for folder in (one, other)]
    if None in folders or folders[0].name != folders[1].name:
        return [*found, f"the last checkpoints are {folders[0]} and {folders[1]}"]
    weights = [load_weights(folder) for folder in folders]
    states = [{"optimizers": load_trainer(folder)["optimizers"]} for folder in folders]
    return found + _unequal("weights", *weights) + _unequal("trainer", *states)


def _unequal(at: str, a: Any, b: Any) -> list[str]:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [f"{at}: by up to {float((a - b).abs().max()):g}"]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [line for name in a for line in _unequal(f"{at}.{name}", a[name], b[name])]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [
            line for number, pair in enumerate(zip(a, b, strict=True)) for line in _unequal(f"{at}.{number}", *pair)
        ]
    return [] if a == b else [f"{at}: {a} and {b}"]


def _rows(folder: Path) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in json_objects(folder / "metrics.jsonl") if row.get("split") == "train"}


def _last_step(folder: Path) -> int:
    return max(_rows(folder), default=0)


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
