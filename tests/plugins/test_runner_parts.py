"""What a runner is made of, from outside the package: optimizer, schedule, logger and metric, by name in a YAML."""

from __future__ import annotations

import csv
import json

import pytest

import train
from chatbridge.common.checkpoint import find_latest, load_trainer
from chatbridge.runners.resume import config_changes
from chatbridge.runners.verify_resume import compare
from tests import tiny
from tests.processes import metrics

STEPS = 4


def moved_by_lion(output):
    (state,) = load_trainer(find_latest(output))["optimizers"]
    assert {name for one in state["state"].values() for name in one} == {"average"}
    assert state["param_groups"][0]["lr_scale"] == 0.5
    assert list(state["param_groups"][0]["betas"]) == [0.9, 0.95]


def written_as_csv(output):
    rows = list(csv.DictReader((output / "metrics.csv").open()))
    wanted = [(str(row["step"]), str(row["loss"]), str(row["lr"])) for row in metrics(output)]
    assert [(row["step"], row["loss"], row["lr"]) for row in rows] == wanted and len(rows) == STEPS


def warmed_up(output):
    assert [row["lr"] for row in metrics(output)] == pytest.approx([5e-4, 1e-3, 1e-3 * (2 / 3) ** 0.5, 1e-3 * 0.5**0.5])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "keys", "look"),
    [
        ("lion", {"optimizer": {"name": "lion", "lr": 5e-4, "betas": [0.9, 0.95]}}, moved_by_lion),
        ("csv_logger", {"loggers": ["jsonl", "csv"]}, written_as_csv),
        ("inverse_root", {"lr_sched": {"name": "inverse_root", "warmup_steps": 2}}, warmed_up),
    ],
)
def test_a_part_from_outside_trains_resumes_and_is_planned(tmp_path, run_plan, plugin, keys, look):
    tree = tiny.make_config(tmp_path, max_steps=STEPS, checkpoint_every=STEPS // 2, **keys)
    tree["plugins"] = [str(tiny.ROOT / "tests" / "plugins" / f"{plugin}.py")]
    status, told = run_plan(tree)
    assert status == 0 and told["ok"]
    yaml = str(tiny.write_yaml(tmp_path, tree))

    def run(name, *options):
        return train.main(["--cfg-path", yaml, "--options", f"run.output_dir={tmp_path / name}", *options])

    assert train.main(["--cfg-path", yaml, "--check"]) == 0
    assert run("whole") == 0
    assert run("parts", f"run.stop_at={STEPS // 2}") == 0 and run("parts") == 0
    assert compare(tmp_path / "whole", tmp_path / "parts") == []
    for name in ("whole", "parts"):
        look(tmp_path / name)


def test_answers_are_scored_by_the_metrics_of_their_set(tmp_path, run_plan):
    tree = tiny.make_config(tmp_path, "instruction")
    word_f1 = {"name": "word_f1", "articles": True}
    chats = tree.pop("datasets")["chats"]
    tree["plugins"] = [str(tiny.ROOT / "tests" / "plugins" / "word_f1.py")]
    tree["validation"] = {"both": {**chats, "metrics": ["exact_match", word_f1]}, "f1": {**chats, "metrics": [word_f1]}}
    tree["run"] = {"runner": "evaluation", "output_dir": str(tmp_path / "asked"), "device": "cpu", "max_new_tokens": 3}
    status, told = run_plan(tree)
    assert status == 0 and told["ok"]
    yaml = str(tiny.write_yaml(tmp_path, tree))
    assert train.main(["--cfg-path", yaml, "--check"]) == 0 and train.main(["--cfg-path", yaml]) == 0
    scores = json.loads((tmp_path / "asked" / "scores.json").read_text())
    both, alone = (scores[name]["full"]["colour"] for name in ("both", "f1"))
    assert (both["metric"], both["n"], both["value"], len(both["ci95"])) == ("exact_match", 12, 0.0, 2)
    assert alone == {"metric": "word_f1", **both["word_f1"]} and alone["n"] == 12


def test_a_bare_name_in_an_old_checkpoint_means_what_it_meant():
    """Components could not have keys there: ``optimizer: adamw`` is now ``optimizer: {name: adamw, lr: null}``."""
    old = {"run": {"optimizer": "adamw", "seed": 1}}
    for name, found in (("adamw", {}), ("muon", {"run.optimizer.name": "'adamw' -> 'muon'"})):
        assert config_changes(old, {"run": {"optimizer": {"name": name, "lr": None}, "seed": 1}}, {}, {}) == found
