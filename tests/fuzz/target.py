"""What a target of the fuzzer is, and what it may raise."""

from __future__ import annotations

import contextlib
import importlib
import io
import linecache
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

SENTINEL = "code_was_run"
"""Payloads make a file of this name in the working folder, which is the trial's."""

TARGETS = {
    "media": "tests.fuzz.media:Media",
    "configurations": "tests.fuzz.configurations:Configurations",
    "weights": "tests.fuzz.weights:Weights",
    "tars": "tests.fuzz.tars:Tars",
    "annotations": "tests.fuzz.annotations:Annotations",
    "requests": "tests.fuzz.requests:Requests",
    "conversations": "tests.fuzz.conversations:Conversations",
}

Step = tuple[str, Callable[[], Any]]
"""What is done with an input: its name, and the doing."""


@dataclass
class Outcome:
    """How a trial ended.

    Attributes:
        kind: "accepted" or "refused" by the first step, or what went wrong in any: one of `harness.FAULTS`.
        step: where, of those that the target gave. text: the error, or the log. place: our innermost line. fault: the
            kind of error.
        grown: bytes by which memory grew at most. tired: whether the process should make room for another.
    """

    kind: str
    step: str = ""
    text: str = ""
    place: str = ""
    fault: str = ""
    grown: int = 0
    tired: bool = False


class Refused(Exception):
    """A command gave back status 1 and one clear line."""


class Target:
    """Something that reads what others wrote. One object lives in a worker and sees many trials.

    Args:
        folder: an empty one of its own, for what trials share.

    Attributes:
        errors: what its steps may raise, by their documentation.
        plain: whether they may also raise a ValueError with words of our own.
    """

    errors: tuple[type[BaseException], ...] = ()
    plain = False

    def __init__(self, folder: Path):
        self.folder = folder

    def trial(self, rng: random.Random, folder: Path) -> Iterator[Step]:
        """Write an input into `folder` and give what is to be done with it. All randomness is `rng`'s."""
        raise NotImplementedError

    def decoded(self, folder: Path, step: str) -> int:
        """Bytes that the input stands for in this step, where that may rightly be much."""
        return 0

    def close(self) -> None:
        pass


def load(name: str) -> type[Target]:
    """A target by its name, or as "module:Class"."""
    module, _, attribute = TARGETS.get(name, name).partition(":")
    return getattr(importlib.import_module(module), attribute)


def documented(target: Target, error: BaseException) -> bool:
    """Whether it is what the target's documentation promises for a bad input."""
    if isinstance(error, (Refused, *target.errors)):
        return True
    return target.plain and type(error) is ValueError and _worded(error)


def _worded(error: BaseException) -> bool:
    """Whether an error comes from a ``raise`` of our own, not out of a library or of ``int("x")``."""
    frame = extract_tb(error.__traceback__)[-1]
    return _ours(frame.filename) and linecache.getline(frame.filename, frame.lineno).lstrip().startswith("raise ")


def place(error: BaseException) -> str:
    """file:line of our innermost line that an error came through; its own words where there is none."""
    ours = [frame for frame in extract_tb(error.__traceback__) if _ours(frame.filename)]
    if not ours:
        return str(error).strip().split("\n")[0][:100]
    return f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}"


def _ours(file: str) -> bool:
    path = Path(file)
    return path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("chatbridge", "dataset_prep", "train.py")


def command(main: Callable[[list[str]], int], *argv: str) -> Callable[[], str]:
    """A step that runs a command's `main`. What it printed comes back, or in Refused; anything else is a fault."""

    def run() -> str:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(list(argv))
        assert "Traceback" not in err.getvalue(), err.getvalue()
        if status == 0:
            return out.getvalue()
        assert status == 1 and (err.getvalue().strip() or out.getvalue().strip()), f"status {status} without a word"
        raise Refused(err.getvalue() or out.getvalue())

    return run
