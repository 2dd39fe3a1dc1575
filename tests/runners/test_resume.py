"""A run that is killed at any moment and started again is, from its last checkpoint on, the run that was not killed."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import train
from chatbridge.common import checkpoint
from chatbridge.common.checkpoint import find_latest, load_trainer
from chatbridge.runners import verify_resume
from tests import tiny
from tests.patience import PATIENCE
from tests.processes import Run, arguments, assert_same, events, metrics
from tests.runners.tools import metrics_so_far, prepare


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(task, storage, workers, ranks) -> the folder and the output of such a run; each is made once."""
    made = {}

    def run(*key):
        if key not in made:
            task, storage, workers, ranks = key
            folder = tmp_path_factory.mktemp(f"{task}_{storage}")
            yaml, output = prepare(folder, task, storage, max_steps=9, num_workers=workers), folder / "whole"
            assert set(Run(output, arguments(yaml, output), ranks).wait()) == {0}
            made[key] = folder, output
        return made[key]

    return run


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("storage", ["folder", "number", "sequence"])
@pytest.mark.parametrize("task", ["alignment", pytest.param("instruction", marks=pytest.mark.slow)])
def test_killed_and_resumed_is_the_uninterrupted_run(uninterrupted, task, storage, workers, ranks):
    # How many workers there are changes what comes next in streams only.
    folder, whole = uninterrupted(task, storage, workers if storage == "sequence" else 0, ranks)
    yaml, parts = folder / "run.yaml", folder / f"parts{workers}"
    options = [f"run.num_workers={workers}"]
    run = Run(parts, arguments(yaml, parts, *options), ranks)
    assert run.until(lambda: find_latest(parts) and len(metrics_so_far(parts)) >= 6)
    run.kill()
    assert find_latest(parts).name == "step_00000004"
    assert set(Run(parts, arguments(yaml, parts, *options), ranks).wait()) == {0}
    assert_same(whole, parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["run.strategy=fsdp"],
        ["mixture.mode=mixed", "mixture.batch_size=4", "run.num_workers=2"],
        ["run.accum_grad_iters=2", "run.optimizer=muon", "run.max_grad_norm=1.0"],
        ["run.amp=bf16", "run.async_checkpoints=false"],
    ],
    ids=lambda options: options[0],
)
def test_killed_and_resumed_in_other_ways_of_running(tmp_path, options):
    yaml = prepare(tmp_path, max_steps=9)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert set(Run(whole, arguments(yaml, whole, *options), 2).wait()) == {0}
    run = Run(parts, arguments(yaml, parts, *options), 2)
    assert run.until(lambda: find_latest(parts) and len(metrics_so_far(parts)) >= 6)
    run.kill()
    assert set(Run(parts, arguments(yaml, parts, *options), 2).wait()) == {0}
    assert_same(whole, parts)


def slow_disk(rank: int) -> None:
    """Writing a checkpoint takes a while, so that kills fall into it."""
    flush = checkpoint._flush

    def slowly(path):
        time.sleep(0.06)
        flush(path)

    checkpoint._flush = slowly


@pytest.mark.slow
def test_many_kills_at_any_moment(tmp_path):
    """Kills at random moments, and in the middle of writing a checkpoint, until the run is through."""
    yaml = prepare(tmp_path, max_steps=120, checkpoint_every=3)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert Run(whole, arguments(yaml, whole)).wait() == [0]
    rng = random.Random(0)
    kills = 0
    while kills < 10:
        run = Run(parts, arguments(yaml, parts), before=slow_disk)
        if kills % 2:
            caught = run.until(lambda: list((parts / "checkpoints").glob(".*")))
        else:
            caught = run.until((parts / "metrics.jsonl").exists)
            time.sleep(rng.random() * 0.5)
        if not caught or not run.alive:
            break
        run.kill()
        kills += 1
    assert kills >= 7
    assert Run(parts, arguments(yaml, parts)).wait() == [0]
    assert_same(whole, parts)
    assert "removed" in events(parts), "no kill fell into the writing of a checkpoint"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 2)])
def test_a_signal_becomes_a_checkpoint_and_exit_0(tmp_path, number, ranks):
    """One rank is told; all stop at the same step, with a checkpoint there, and go on from it."""
    yaml = prepare(tmp_path, max_steps=40, checkpoint_every=1000)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert set(Run(whole, arguments(yaml, whole), ranks).wait()) == {0}
    run = Run(parts, arguments(yaml, parts), ranks)
    assert run.until(lambda: (parts / "metrics.jsonl").exists() and len(metrics_so_far(parts)) >= 3)
    run.send(number, rank=ranks - 1)
    assert set(run.wait()) == {0}
    stopped = load_trainer(find_latest(parts))["step"]
    assert 3 <= stopped < 40 and "signal" in events(parts) and events(parts)[-1] == "end"
    assert set(Run(parts, arguments(yaml, parts), ranks).wait()) == {0}
    assert_same(whole, parts)


def test_no_checkpoint_within_the_grace_time_is_an_error(tmp_path):
    yaml = prepare(tmp_path, grace_seconds=0.5)

    def stuck(rank: int) -> None:
        from chatbridge.runners import training

        training.OptimizerStep.__call__ = lambda *a, **k: time.sleep(3600)

    run = Run(tmp_path / "out", arguments(yaml, tmp_path / "out"), before=stuck)
    assert run.until(lambda: (tmp_path / "out" / "events.jsonl").exists())
    time.sleep(0.3)
    run.send(signal.SIGTERM)
    assert run.wait(PATIENCE) == [1]
    assert "no checkpoint within run.grace_seconds" in run.text()


@pytest.mark.slow
def test_another_number_of_ranks_reads_the_same_samples(tmp_path):
    """2 ranks, then 1, then 4: every step's samples are those of an uninterrupted run, each of them once an epoch."""
    yaml = prepare(tmp_path, max_steps=12)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert Run(whole, arguments(yaml, whole)).wait() == [0]
    for ranks, stop in ((2, 4), (1, 8), (4, 12)):
        assert set(Run(parts, arguments(yaml, parts, f"run.stop_at={stop}"), ranks).wait()) == {0}
    one, two = metrics(whole), metrics(parts)
    assert [(r["ids"], r["dataset"], r["samples"]) for r in one] == [
        (r["ids"], r["dataset"], r["samples"]) for r in two
    ]
    assert "resumed" in events(parts)


def test_another_number_of_ranks_is_refused_for_streams(tmp_path):
    yaml = prepare(tmp_path, storage="sequence")
    out = tmp_path / "out"
    assert set(Run(out, arguments(yaml, out, "run.stop_at=4"), 2).wait()) == {0}
    run = Run(out, arguments(yaml, out), 1)
    assert run.wait() == [1]
    assert "images" in run.text() and "accept_changes" in run.text()
    allowed = Run(out, arguments(yaml, out, "run.accept_changes=[world]"), 1)
    assert allowed.wait() == [0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["run.init_lr=0.5"], "run.init_lr: 0.001 -> 0.5"),
        (["run.max_steps=24"], "run.max_steps: 12 -> 24"),
        (["model.bridges.vision.perceiver.num_queries=8"], "model.bridges.vision.perceiver.num_queries: 4 -> 8"),
        (["datasets.images.batch_size=8"], "datasets.images.batch_size: 4 -> 8"),
        (["task.max_txt_len=8"], "task.max_txt_len"),
    ],
)
def test_a_change_of_meaning_is_refused_with_the_difference(tmp_path, options, named, capsys):
    yaml, out = prepare(tmp_path), tmp_path / "out"
    assert train.main(arguments(yaml, out, "run.stop_at=4")) == 0
    assert train.main(arguments(yaml, out, *options)) == 1
    told = capsys.readouterr().err
    assert named in told and "run.accept_changes" in told


def test_accepted_and_harmless_changes_go_on(tmp_path):
    yaml, out = prepare(tmp_path), tmp_path / "out"
    assert train.main(arguments(yaml, out, "run.stop_at=4")) == 0
    harmless = ["run.num_workers=1", "run.log_every=2", "run.checkpoint_every=5"]
    assert train.main(arguments(yaml, out, "run.init_lr=0.002", "run.accept_changes=[run.init_lr]", *harmless)) == 0
    lines = tiny.json_lines(out / "events.jsonl")
    assert [line["text"] for line in lines if line["event"] == "changed"] == ["run.init_lr: 0.001 -> 0.002"]


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("muon", ["run.weight_decay=0.2", "run.betas=[0.5,0.9]", "run.muon_lr=0.5"]),
        ("{name: adamw, lr: 0.01}", ["run.init_lr=0.002", "run.optimizer.eps=0.001"]),
        ("{name: adamw, lr: 0.01}", ["run.optimizer=adamw"]),
    ],
)
def test_accepted_changes_of_an_optimizer_take_effect(tmp_path, optimizer, options):
    """Its groups are as a new run's, its moments are those of the checkpoint."""
    yaml, out, new = prepare(tmp_path), tmp_path / "out", tmp_path / "new"
    assert train.main(arguments(yaml, out, f"run.optimizer={optimizer}", "run.stop_at=4")) == 0
    changed = [f"run.optimizer={optimizer}", *options, "run.stop_at=5"]
    assert train.main(arguments(yaml, out, *changed, "run.accept_changes=[run]")) == 0
    assert train.main(arguments(yaml, new, *changed)) == 0
    resumed, fresh = (load_trainer(find_latest(folder))["optimizers"] for folder in (out, new))
    for one, other in zip(resumed, fresh, strict=True):
        groups, wanted = ([{**group, "lr": 0} for group in state["param_groups"]] for state in (one, other))
        assert groups == wanted
    steps, wanted = ([state["step"] for state in one[0]["state"].values()] for one in (resumed, fresh))
    assert steps == wanted and max(steps) > 1


@pytest.mark.parametrize("option", ["run.optimizer=muon", "run.decay=matrices"])
def test_changes_that_an_optimizers_state_does_not_fit_are_refused(tmp_path, option, capsys):
    yaml, out = prepare(tmp_path), tmp_path / "out"
    assert train.main(arguments(yaml, out, "run.stop_at=2")) == 0
    assert train.main(arguments(yaml, out, option, "run.accept_changes=[run]")) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "trainer.pt: does not fit this run" in line and "take the old run.optimizer and run.decay" in line


def test_changed_annotations_are_refused(tmp_path, capsys):
    yaml, out = prepare(tmp_path), tmp_path / "out"
    assert train.main(arguments(yaml, out, "run.stop_at=4")) == 0
    file = tmp_path / "media" / "images.json"
    file.write_text(file.read_text().replace("a red picture", "a crimson picture"))
    assert train.main(arguments(yaml, out)) == 1
    assert "datasets.images.annotations: the content of the files has changed" in capsys.readouterr().err


@pytest.mark.slow
def test_verify_resume_proves_it_on_the_users_own_run(tmp_path, capsys, monkeypatch):
    def popen(command, stdout, start_new_session, **_):
        """What is started is forked instead, as everywhere here, into a session of its own."""
        assert command[:2] == [sys.executable, train.__file__] and start_new_session
        run = Run(Path(stdout.name).parent / "forked", command[2:], before=lambda rank: os.setsid())
        (process,) = run.processes
        return SimpleNamespace(pid=process.pid, poll=lambda: process.exitcode, wait=lambda: run.wait()[0])

    monkeypatch.setattr(verify_resume, "subprocess", SimpleNamespace(Popen=popen))
    yaml = prepare(tmp_path)
    assert train.main(["--cfg-path", str(yaml), "--verify-resume", "10"]) == 0
    assert "the same losses, samples, weights and optimizer state" in capsys.readouterr().out
    assert train.main(["--cfg-path", str(yaml), "--verify-resume", "2"]) == 1
    assert "at least 4 steps" in capsys.readouterr().err


def test_verify_resume_finds_what_differs(tmp_path):
    yaml = prepare(tmp_path)
    for name, seed in (("one", 1), ("two", 2)):
        assert train.main(arguments(yaml, tmp_path / name, f"run.seed={seed}")) == 0
    found = verify_resume.compare(tmp_path / "one", tmp_path / "two")
    for kind in ("loss", "ids", "weights.", "trainer.optimizers"):
        assert any(kind in line for line in found), kind
    assert verify_resume.compare(tmp_path / "one", tmp_path / "one") == []
