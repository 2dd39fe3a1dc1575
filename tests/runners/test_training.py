"""The training loop on real files: it learns, logs, checkpoints, resumes, and says what is wrong."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from chatbridge.common.checkpoint import find_latest, load_weights
from chatbridge.common.loggers import JsonLines, MetricsLog
from chatbridge.runners.step import OptimizerStep
from tests import tiny


def run(folder, tree, *options: str) -> int:
    return train.main(["--cfg-path", str(tiny.write_yaml(folder, tree)), *(["--options", *options] if options else [])])


def metrics(output) -> list[dict]:
    return tiny.json_lines(output / "metrics.jsonl")


@pytest.mark.parametrize("task", ["alignment", "instruction"])
def test_a_run_learns_logs_and_checkpoints(tmp_path, task):
    tree = tiny.make_config(tmp_path, task, max_steps=30, init_lr=5e-3)
    assert run(tmp_path, tree) == 0
    rows = metrics(tmp_path / "output")
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert {"step", "loss", "dataset", "lr"} <= rows[0].keys()
    for name in tree["datasets"]:
        losses = [row["loss"] for row in rows if row["dataset"] == name]
        assert losses[-1] < losses[0] - 0.5
    weights = load_weights(find_latest(tmp_path / "output"))
    frozen = ("llm.", "bridges.vision.encoder.", "bridges.audio.encoder.", "bridges.vision.norm.")
    assert weights and not any(name.startswith(frozen) for name in weights)
    assert (tmp_path / "output" / "config.yaml").exists()


def test_accumulation_equals_one_large_batch(tmp_path):
    """Two batches of 4 in one step move the weights as one batch of 8 does: losses are weighed by tokens."""
    tree = tiny.make_config(tmp_path, max_steps=3)
    del tree["datasets"]["sounds"]
    small, large = tmp_path / "small", tmp_path / "large"
    assert run(tmp_path, tree, f"run.output_dir={small}", "run.accum_grad_iters=2") == 0
    tree["datasets"]["images"]["batch_size"] = 8
    assert run(tmp_path, tree, f"run.output_dir={large}") == 0
    for a, b in zip(metrics(small), metrics(large), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5) and a["tokens"] == b["tokens"]


def test_validation_is_logged(tmp_path):
    tree = tiny.make_config(tmp_path, max_steps=4, validate_every=2)
    tree["validation"] = {"held_out": dict(tree["datasets"]["images"])}
    assert run(tmp_path, tree) == 0
    rows = [row for row in metrics(tmp_path / "output") if row["split"] == "validation"]
    assert [(row["step"], row["dataset"]) for row in rows] == [(2, "held_out"), (4, "held_out")]


def test_muon_trains_resumes_and_refuses_fp16(tmp_path, capsys):
    tree = tiny.make_config(tmp_path, max_steps=4, checkpoint_every=2, optimizer="muon", max_grad_norm=1.0)
    assert run(tmp_path, tree, f"run.output_dir={tmp_path / 'whole'}", "run.optimizer={name: muon, lr: 0.01}") == 0
    assert run(tmp_path, tree, f"run.output_dir={tmp_path / 'parts'}") == 0
    parts = tmp_path / "parts" / "checkpoints"
    (parts / "latest").write_text("step_00000002")  # as if killed after the first checkpoint
    assert run(tmp_path, tree, f"run.output_dir={tmp_path / 'parts'}") == 0
    one, two = (load_weights(find_latest(tmp_path / name)) for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert train.main(["--cfg-path", str(tmp_path / "run.yaml"), "--check", "--options", "run.amp=fp16"]) == 1
    assert "take amp: bf16" in capsys.readouterr().err


def test_every_number_reaches_the_sinks_and_no_key_is_handed_on(tmp_path, monkeypatch):
    """W&B by its interface only: it is not installed here."""
    told = {}

    class Board:
        def log(self, values, step):
            told[step] = values

        def finish(self):
            told["finished"] = True

    def init(**settings):
        told["init"] = settings
        return Board()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    monkeypatch.setenv("WANDB_API_KEY", "not-for-files")
    loggers = ["jsonl", "tensorboard", {"name": "wandb", "project": "bridges"}]
    tree = tiny.make_config(tmp_path, max_steps=3, loggers=loggers)
    assert run(tmp_path, tree) == 0
    assert told["finished"] and told["init"]["config"]["run"]["max_steps"] == 3
    assert "not-for-files" not in str(told["init"]) and told["init"]["resume"] == "allow"
    assert told["init"]["project"] == "bridges" and "entity" not in told["init"]
    dataset = metrics(tmp_path / "output")[0]["dataset"]
    assert {"train/loss", f"train/losses/{dataset}", "train/grad_norms/bridges.audio.projector"} <= told[1].keys()
    accumulator = EventAccumulator(str(tmp_path / "output" / "tensorboard")).Reload()
    assert f"train/{dataset}/losses/{dataset}" in accumulator.Tags()["scalars"]


def test_a_resumed_log_keeps_rows_and_nothing_else(tmp_path):
    rubbish = [
        b"[1]",
        b"null",
        b"{}",
        b'{"step": "x"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"step": 9}',
        b'{"step": 2, "a":',
    ]
    rows = [b'{"step": 1, "split": "train"}', b'{"step": 2, "split": "train"}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([rows[0], *rubbish[:4], rows[1], *rubbish[4:]]))
    MetricsLog([JsonLines], tmp_path, resumed_at=2).close()
    assert (tmp_path / "metrics.jsonl").read_bytes().splitlines() == rows


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 5 bytes")])
def test_memory_that_runs_out_is_one_line(tmp_path, capsys, monkeypatch, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(OptimizerStep, "__call__", fail)
    assert tiny.run(tmp_path, tiny.make_config(tmp_path, max_steps=2)) == 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "memory has run out" in said and "--plan" in said
