"""The process that watches: it hands out trials, ends those that never would, and keeps the inputs that fell."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from multiprocessing import Pipe
from pathlib import Path

import psutil

from tests.fuzz.target import ROOT, Outcome

FAULTS = {
    "traceback": "tracebacks", "hang": "hangs", "crash": "crashes", "memory": "memory", "code run": "code run",
}  # fmt: skip
"""What must never happen, and the table's word for it."""

STARTING = 180.0
"""Seconds for a process to start and a target to make what its trials share."""


LARGEST = 32 << 20
"""Bytes of a file that is kept; larger ones come back when the trial is run again."""


class Fuzzer:
    """Runs trials one after the other, in a process that is replaced when it is dead or tired.

    Args:
        seed: of every trial, with the target and its number. out: a folder for work, and for what falls.
        seconds: of processor time that one step may take; waiting, three times as long.
        memory: bytes by which a trial may let the process grow.

    Attributes:
        counts: target -> how often which kind of outcome; fallen: the outcomes that must not be, as dictionaries.
    """

    def __init__(self, seed: int, out: Path, seconds: float = 20.0, memory: int = 1 << 30):
        self.seed, self.out, self.seconds, self.memory = seed, out.absolute(), seconds, memory
        self.counts: dict[str, Counter[str]] = {}
        self.fallen: list[dict] = []
        self._process: subprocess.Popen | None = None
        self._base = self.out / "work"

    def __enter__(self) -> Fuzzer:
        shutil.rmtree(self._base, ignore_errors=True)
        self._base.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._connection.send(None)
                self._process.wait(20)
        self._stop()
        shutil.rmtree(self._base, ignore_errors=True)

    def run(self, target: str, number: int) -> Outcome:
        """One trial."""
        folder = self._base / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if self._process is None:
            self._start()
        self._connection.send((target, self.seed, number, str(folder)))
        outcome = self._watched()
        self.counts.setdefault(target, Counter())[outcome.kind] += 1
        if outcome.kind in FAULTS:
            self._keep(target, number, folder, outcome)
        if outcome.tired or outcome.kind in ("hang", "crash"):
            self._stop()
        return outcome

    def _start(self) -> None:
        base = self._base / f"process{time.monotonic_ns()}"
        base.mkdir()
        self._connection, theirs = Pipe()
        line = [sys.executable, "-m", "tests.fuzz.worker", str(theirs.fileno()), str(base), str(self.memory)]
        # A group of its own: what trials start ends with it.
        self._process = subprocess.Popen(line, pass_fds=[theirs.fileno()], cwd=ROOT, start_new_session=True)
        theirs.close()
        self._log = base / "log.txt"

    def _stop(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()
        shutil.rmtree(self._log.parent, ignore_errors=True)
        self._process = None

    def _watched(self) -> Outcome:
        """How the trial ends that was handed out, by itself or by its process's death or ours."""
        step, limit = "", STARTING
        began, used = time.monotonic(), self._used()
        while True:
            try:
                if self._connection.poll(0.2):
                    told = self._connection.recv()
                    if isinstance(told, Outcome):
                        return told
                    if isinstance(told, Exception):
                        self._stop()
                        raise told
                    step, limit = told, self.seconds
                    began, used = time.monotonic(), self._used()
                    continue
            except (EOFError, OSError):
                return self._ended("crash", step, f"exit status {self._process.wait()}")
            if self._used() - used > limit or time.monotonic() - began > 3 * limit:
                os.kill(self._process.pid, signal.SIGUSR2)  # every thread writes where it is
                time.sleep(0.5)
                return self._ended("hang", step, f"over {limit:g} s")

    def _ended(self, kind: str, step: str, why: str) -> Outcome:
        said = self._log.read_text(errors="replace") if self._log.exists() else ""
        main = said.rpartition("hread 0x")[2].splitlines()  # stands last
        frames = [line.strip() for line in main if "/chatbridge/" in line or "/dataset_prep/" in line]
        place = frames[0].rpartition("/")[2] if frames else step
        return Outcome(kind, step, f"{why}\n{said[-6000:]}", place, why)

    def _used(self) -> float:
        """Seconds of processor time of the process and those that it waited for."""
        try:
            return sum(psutil.Process(self._process.pid).cpu_times()[:4])
        except psutil.Error:
            return 0.0

    def _keep(self, target: str, number: int, folder: Path, outcome: Outcome) -> None:
        name = target.rpartition(":")[2].lower()
        kept = self.out / f"{name}-{self.seed}-{number}"
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        again = f"python -m tests.fuzz --target {target} --seed {self.seed} --only {number}"
        (kept / "what.txt").write_text(f"{again}\n\n{outcome.kind} at '{outcome.step}'\n\n{outcome.text}\n")
        shutil.move(folder, kept / "input")
        for file in (kept / "input").rglob("*"):
            if file.lstat().st_size > LARGEST:
                file.unlink()
        fell = {"target": target, "seed": self.seed, "number": number, "kept": str(kept), **asdict(outcome)}
        self.fallen.append(fell)
        with (self.out / "fallen.jsonl").open("a") as file:
            file.write(json.dumps(fell) + "\n")

    def table(self) -> str:
        """Counts by target."""
        columns = ("trials", "accepted", "refused", *FAULTS.values())
        lines = [f"{'target':<16}" + "".join(f"{column:>12}" for column in columns)]
        for target, counts in self.counts.items():
            numbers = [sum(counts.values()), counts["accepted"], counts["refused"], *(counts[f] for f in FAULTS)]
            lines.append(f"{target:<16}" + "".join(f"{number:>12,}" for number in numbers))
        return "\n".join(lines)

    def kinds(self) -> list[tuple[int, dict]]:
        """Distinct faults, each with how often it happened and its first input."""
        first: dict[tuple, dict] = {}
        seen: Counter[tuple] = Counter()
        for fell in self.fallen:
            kind = (fell["target"], fell["kind"], fell["fault"], fell["place"])
            first.setdefault(kind, fell)
            seen[kind] += 1
        return [(seen[kind], first[kind]) for kind, _ in seen.most_common()]
