"""A few damaged inputs of every kind; and the fuzzer notices everything that it is there to notice."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.harness import FAULTS, Fuzzer
from tests.fuzz.target import SENTINEL, Refused, Step, Target

TRIALS = {
    "media": 90,
    "configurations": 30,
    "weights": 40,
    "tars": 50,
    "annotations": 50,
    "requests": 60,
    "conversations": 10,
}
SEED = 20


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    with Fuzzer(SEED, tmp_path_factory.mktemp("fuzz")) as fuzzer:
        yield fuzzer


@pytest.mark.slow
@pytest.mark.parametrize("target", TRIALS)
def test_damaged_inputs_are_read_or_refused(fuzzer, target):
    for number in range(TRIALS[target]):
        outcome = fuzzer.run(target, number)
        assert outcome.kind not in FAULTS, f"{outcome.kind} at '{outcome.step}', number {number}\n{outcome.text}"
    counts = fuzzer.counts[target]
    assert counts["accepted"] and counts["refused"]


class Acts(Target):
    """Does the one thing that a class below says."""

    errors = (LookupError,)
    plain = True

    def trial(self, rng: random.Random, folder: Path) -> Iterator[Step]:
        (folder / "input").write_bytes(rng.randbytes(50))
        yield "act", getattr(self, type(self).act)
        yield "act again", lambda: None


class Reads(Acts):
    act = "read"

    def read(self) -> None:
        assert len(Path("input").read_bytes()) == 50


class Refuses(Acts):
    act = "refuse"

    def refuse(self) -> None:
        raise Refused("error: no")


class Documented(Acts):
    act = "raise_it"

    def raise_it(self) -> None:
        raise IndexError("a kind of LookupError")


class Raises(Acts):
    act = "raise_it"

    def raise_it(self) -> None:
        raise TypeError("not documented")


class Stumbles(Acts):
    act = "stumble"

    def stumble(self) -> None:
        int("x")  # a ValueError, but not in words of ours


class Exits(Acts):
    act = "exit"

    def exit(self) -> None:
        raise SystemExit(0)


class Mutters(Acts):
    act = "mutter"

    def mutter(self) -> None:
        thread = threading.Thread(target=lambda: {}["nothing"])
        thread.start()
        thread.join()


class Turns(Acts):
    act = "turn"

    def turn(self) -> None:
        while True:
            pass


class Waits(Acts):
    act = "wait"

    def wait(self) -> None:
        os.mkfifo("pipe")
        open("pipe").close()


class Dies(Acts):
    act = "die"

    def die(self) -> None:
        os.abort()


class Eats(Acts):
    act = "eat"

    def eat(self) -> None:
        bytearray(b"x") * (150 << 20)


class Wants(Acts):
    act = "want"

    def want(self) -> None:
        try:
            bytearray(1 << 44)
        except MemoryError:
            raise LookupError("as if it were the input's fault") from None


class Obeys(Acts):
    act = "obey"

    def obey(self) -> None:
        os.system(f"touch {SENTINEL}")


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    with Fuzzer(0, tmp_path_factory.mktemp("strict"), seconds=1.0, memory=100 << 20) as fuzzer:
        yield fuzzer


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (Reads, "accepted"), (Refuses, "refused"), (Documented, "refused"), (Raises, "traceback"),
        (Stumbles, "traceback"), (Exits, "traceback"), (Mutters, "traceback"), (Turns, "hang"), (Waits, "hang"),
        (Dies, "crash"), (Eats, "memory"), (Wants, "memory"), (Obeys, "code run"), (Reads, "accepted"),
    ],
)  # fmt: skip
def test_what_must_not_be_is_noticed(strict, act, kind):
    before = len(strict.fallen)
    outcome = strict.run(f"tests.fuzz.test_fuzz:{act.__name__}", 7)
    assert outcome.kind == kind, outcome.text
    kept = strict.fallen[before:]
    assert [fell["kind"] for fell in kept] == ([kind] if kind in FAULTS else [])
    for fell in kept:
        assert "--seed 0 --only 7" in (Path(fell["kept"]) / "what.txt").read_text()
        assert (Path(fell["kept"]) / "input" / "input").is_file()


def test_a_trial_is_the_same_again(strict):
    def given(number: int) -> bytes:
        strict.run("tests.fuzz.test_fuzz:Raises", number)
        return (Path(strict.fallen[-1]["kept"]) / "input" / "input").read_bytes()

    assert given(1) == given(1) != given(2)


def test_a_fault_of_the_fuzzer_itself_is_not_swallowed(strict):
    with pytest.raises(RuntimeError, match="no attribute 'act'"):
        strict.run("tests.fuzz.test_fuzz:Acts", 1)


def test_the_table_counts(tmp_path):
    with Fuzzer(0, tmp_path) as fuzzer:
        for act in (Reads, Refuses, Raises, Raises):
            fuzzer.run(f"tests.fuzz.test_fuzz:{act.__name__}", 0)
        assert [often for often, _ in fuzzer.kinds()] == [2]
        assert [line.split()[1:5] for line in fuzzer.table().splitlines()[1:]] == [
            ["1", "1", "0", "0"], ["1", "0", "1", "0"], ["2", "0", "0", "2"]
        ]  # fmt: skip
