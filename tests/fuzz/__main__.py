"""The fuzzer by hand; see the package's words."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.harness import FAULTS, Fuzzer
from tests.fuzz.target import TARGETS

ROUND = 20
"""Trials of a target before it is the next one's turn, at least."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Damaged inputs by the thousand.")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="repeat; by default all")
    parser.add_argument("--minutes", type=float, default=20.0, help="for all targets together [20]")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random [0]")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this one trial, and everything about it")
    parser.add_argument("--out", type=Path, help="where inputs that fell are kept [a new folder]")
    args = parser.parse_args(argv)
    chosen = args.target or list(TARGETS)
    if args.only is not None and len(chosen) != 1:
        parser.error("--only needs one --target")
    out = args.out or Path(tempfile.mkdtemp(prefix="fuzz-"))
    with Fuzzer(args.seed, out) as fuzzer:
        if args.only is not None:
            outcome = fuzzer.run(chosen[0], args.only)
            print(f"{outcome.kind} at '{outcome.step}' ({outcome.grown >> 20} MiB more)\n{outcome.text}")
            return int(outcome.kind in FAULTS)
        with contextlib.suppress(KeyboardInterrupt):
            _rounds(fuzzer, chosen, args.minutes * 60)
        print(fuzzer.table())
        for often, fell in fuzzer.kinds():
            what = f"{fell['kind']} {fell['fault']} at {fell['place']}"
            print(f"{often:>5} x {fell['target']}: {what}, first: {fell['kept']}")
    return int(bool(fuzzer.fallen))


def _rounds(fuzzer: Fuzzer, chosen: list[str], seconds: float) -> None:
    """Trials of every target in turn, so that each has the same time."""
    end, share = time.monotonic() + seconds, min(60.0, seconds / len(chosen))
    done = dict.fromkeys(chosen, 0)
    while time.monotonic() < end:
        for target in chosen:
            until, first = time.monotonic() + share, done[target]
            while time.monotonic() < min(until, end) or done[target] < first + ROUND:
                fuzzer.run(target, done[target])
                done[target] += 1


if __name__ == "__main__":
    sys.exit(main())
