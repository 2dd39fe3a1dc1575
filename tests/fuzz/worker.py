"""The process that trials run in: it tells what it begins, and how it ended, unless it does not live to tell."""

from __future__ import annotations

import faulthandler
import os
import random
import resource
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz import target as targets
from tests.fuzz.target import SENTINEL, Outcome, Target

ROOM = 4 << 30
"""Bytes of addresses that a trial may take; more is refused by the system, so that this machine survives it."""

SLOW_STEP = 5.0
"""Seconds after which a decoder may have been left alone in its thread: nothing more is tried in this process."""

KEPT = 700 << 20
"""Bytes that a process may have grown by before another takes its place: what it has, it does not ask for again."""


def work(connection: Connection, base: Path, memory: int) -> None:
    """Run trials that come as (target, seed, number, folder) until None comes. Steps go out as they begin."""
    log = open(base / "log.txt", "w+b", buffering=0)  # noqa: SIM115 (for as long as the process lives)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    faulthandler.enable(log)
    faulthandler.register(signal.SIGUSR2, log)
    known: dict[str, Target] = {}
    answers = base / "answers.txt"
    answers.write_text("y\n" * 1000)  # whoever asks on standard input is told to go ahead
    sys.stdin = open(answers)  # noqa: SIM115
    os.dup2(sys.stdin.fileno(), 0)
    while (asked := connection.recv()) is not None:
        name, seed, number, folder = asked
        try:
            if name not in known:
                shared = base / f"shared{len(known)}"
                shared.mkdir()
                known[name] = targets.load(name)(shared)
            os.ftruncate(log.fileno(), 0)
            log.seek(0)
            sys.stdin.seek(0)
            os.chdir(folder)
            outcome = _trial(known[name], random.Random(f"{seed}/{name}/{number}"), Path(folder), memory, connection)
        except Exception:  # of the fuzzer itself: what is tried is caught where it is tried
            connection.send(RuntimeError(f"{name}, number {number}:\n{traceback.format_exc()}"))
            return
        sys.stdout.flush()
        sys.stderr.flush()
        said = (base / "log.txt").read_bytes().decode("utf-8", "replace")
        if "Traceback (most recent call last)" in said:
            if outcome.kind in ("accepted", "refused"):
                outcome.kind, outcome.text = "traceback", ""
            if outcome.kind == "traceback" and not outcome.place.startswith(("chatbridge/", "dataset_prep/")):
                outcome.fault, outcome.place = _logged(said)
            outcome.text += f"\n{said[-6000:]}"
        os.chdir(base)
        connection.send(outcome)
    for one in known.values():
        one.close()


def _trial(target: Target, rng: random.Random, folder: Path, memory: int, connection: Connection) -> Outcome:
    outcome, before, threads = Outcome("refused"), _memory("VmRSS"), threading.active_count()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    size = _memory("VmSize") + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    for number, (step, action) in enumerate(target.trial(rng, folder)):
        connection.send(step)
        started = time.monotonic()
        error = _error_of(action)
        if error is None and number == 0:
            outcome.kind = "accepted"
        elif error is not None:
            short = _out_of_memory(error)
            if short or not targets.documented(target, error):
                kind = "memory" if short else "traceback"
                text = "".join(traceback.format_exception(error))
                outcome = Outcome(kind, step, text, targets.place(error), type(error).__name__)
            elif number == 0:
                outcome.step, outcome.text = step, str(error)
            error = None
        outcome.grown = max(outcome.grown, _memory("VmHWM") - before)
        if outcome.grown > memory and outcome.kind in ("accepted", "refused"):
            allowed = memory + target.decoded(folder, step)
            if outcome.grown > allowed:
                outcome.kind, outcome.step, outcome.place = "memory", step, step
                outcome.text = f"{outcome.grown >> 20} MiB more than before, {allowed >> 20} allowed"
        if any(folder.rglob(SENTINEL)):
            outcome.kind, outcome.step, outcome.place = "code run", step, step
        if outcome.kind not in ("accepted", "refused"):
            break
        if time.monotonic() - started > SLOW_STEP:
            outcome.tired = True
            break
    outcome.tired |= _memory("VmRSS") - before > KEPT or threading.active_count() > threads + 20
    return outcome


def _error_of(action: object) -> BaseException | None:
    try:
        action()
    except BaseException as error:  # SystemExit and KeyboardInterrupt are not documented either
        return error
    return None


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether memory was asked for that the system did not give, whatever became of it."""
    while error is not None:
        # FFmpeg says so, too, by a bound of its own, before it has asked for anything.
        short = isinstance(error, MemoryError) and not type(error).__module__.startswith("av.")
        if short or "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _logged(said: str) -> tuple[str, str]:
    """Kind and place of the first error in a log."""
    lines = said[said.index("Traceback (most recent call last)") :].splitlines()[1:]
    error = next((line.split(":")[0] for line in lines if line[:1].isalpha()), "?")
    frames = [line.strip() for line in lines if line.lstrip().startswith('File "')]
    ours = [frame for frame in frames if "/chatbridge/" in frame or "/dataset_prep/" in frame]
    return f"logged {error}", "/".join((ours or frames or ["?"])[-1].split("/")[-2:])


def _memory(name: str) -> int:
    """Bytes, of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(name)


def main() -> None:
    line, base, memory = sys.argv[1:]
    work(Connection(int(line)), Path(base), int(memory))
    os._exit(0)  # whatever threads trials have left


if __name__ == "__main__":
    main()
