"""What ``train.py --plan`` says of mixed batches, against those that the data loader makes."""

from __future__ import annotations

import json

import pytest

from chatbridge import register_all
from chatbridge.common.config import load_config
from chatbridge.planning import PlanOptions, plan
from chatbridge.planning.batches import shares
from chatbridge.runners.assembly import Assembly
from tests import tiny


@pytest.fixture
def tree(tmp_path):
    register_all()
    tree = tiny.make_config(tmp_path) | {"mixture": {"mode": "mixed", "batch_size": 12}}
    tree["datasets"]["images"]["weight"], tree["datasets"]["sounds"]["weight"] = 3.0, 1.0
    tree["task"]["max_txt_len"] = 12
    file = tmp_path / "media" / "images.json"  # captions of different lengths
    entries = json.loads(file.read_text())
    for index, entry in enumerate(entries):
        entry["caption"] += " and more" * (index % 4)
    file.write_text(json.dumps(entries))
    return tree


@pytest.mark.parametrize("world", [1, 3])
def test_mixed_batches_are_as_planned(tree, tmp_path, world):
    found = plan(tiny.write_yaml(tmp_path, tree), PlanOptions(gpus=world))
    (planned,) = found.datasets
    assert planned.name == "mixed" and planned.share == 1.0 and planned.measured
    assert found.work.keys() == found.memory.keys() == {"mixed"} and found.throughput.step_seconds > 0
    assembly = Assembly(load_config(tmp_path / "run.yaml"))
    batches = assembly.batches(assembly.mixture(120, 0), 0, world, 0, False)
    seen = [next(batches) for _ in range(120)]

    def mean(values):
        return sum(values) / len(seen)

    def media(batch, modality):
        return len(batch.media.get(modality, ()))

    for batch in seen:
        assert len(batch.ids) == planned.expected.samples == 12 / world
        for worst in planned.worst:
            assert worst.samples == len(batch.ids) and batch.input_ids_BL.numel() <= worst.positions
            assert batch.supervised_tokens <= worst.supervised
        for modality in ("image", "audio"):
            assert media(batch, modality) <= max(worst.media[modality].count for worst in planned.worst)
    for modality, share in (("image", 0.75), ("audio", 0.25)):
        assert planned.expected.media[modality].count == 12 / world * share
        assert mean([media(b, modality) for b in seen]) == pytest.approx(12 / world * share, rel=0.15)
    assert planned.expected.supervised == pytest.approx(mean([b.supervised_tokens for b in seen]), rel=0.1)
    assert planned.expected.positions == pytest.approx(mean([b.input_ids_BL.numel() for b in seen]), rel=0.1)


def test_shares_are_of_samples(tree, tmp_path):
    for dataset in tree["datasets"].values():
        del dataset["weight"]
    tree["datasets"]["images"]["batch_size"] = 1
    config = load_config(tiny.write_yaml(tmp_path, tree)).config
    assert shares(config.datasets, {"images": 12, "sounds": 4}, "mixed") == {"images": 0.75, "sounds": 0.25}


def test_what_mixed_batches_refuse_is_planned_too(tree, run_plan):
    tree["datasets"]["music"] = tree["datasets"]["sounds"] | {
        "processors": {"audio": {"name": "audio", "frames_per_clip": 64, "clips": 2}}
    }
    status, told = run_plan(tree, "--gpus", "5")
    assert status == 1 and any("'sounds' and 'music' into one batch" in line for line in told["problems"])
    assert any("mixture.batch_size: 12 samples cannot be shared by 5" in line for line in told["problems"])
