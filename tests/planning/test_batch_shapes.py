"""The shapes of batches that are planned, against those that the data loader makes."""

from __future__ import annotations

import json

import pytest

from chatbridge.common.config import load_config
from chatbridge.planning import PlanOptions, plan
from chatbridge.planning.batch_shapes import shares
from chatbridge.runners.assembly import Assembly
from tests import tiny


@pytest.fixture
def captions(tree, tmp_path):
    """A run whose captions have different lengths."""
    file = tmp_path / "media" / "images.json"
    entries = json.loads(file.read_text())
    for index, entry in enumerate(entries):
        entry["caption"] += " and more" * (index % 4)
    file.write_text(json.dumps(entries))
    tree["task"]["max_txt_len"] = 12
    return tree


BATCHES = {
    "a row each": {"batch_size": 6},
    "packed": {"batch_size": 8, "pack": 30},
    "a budget": {"batch_tokens": 60},
    "a packed budget": {"batch_tokens": 60, "pack": 30},
    "mixed": {},
    "mixed, three processes": {},
}


@pytest.mark.usefixtures("without_steps")
@pytest.mark.parametrize("case", BATCHES)
def test_batches_are_as_planned(captions, tmp_path, case):
    mixed, world = case.startswith("mixed"), 3 if "three" in case else 1
    if mixed:
        captions["mixture"] = {"mode": "mixed", "batch_size": 12}
        captions["datasets"]["images"]["weight"], captions["datasets"]["sounds"]["weight"] = 3.0, 1.0
    else:
        captions["datasets"] = {"images": captions["datasets"]["images"] | BATCHES[case]}
    (planned,) = plan(tiny.write_yaml(tmp_path, captions), PlanOptions(gpus=world)).datasets
    assert planned.measured and planned.share == 1.0 and planned.name == ("mixed" if mixed else "images")
    steps = 120 if mixed else 40
    assembly = Assembly(load_config(tmp_path / "run.yaml"))
    batches = assembly.batches(assembly.mixture(steps, 0), 0, world, 0, False)
    seen = [next(batches) for _ in range(steps)]

    def about(values, rel):
        return pytest.approx(sum(values) / steps, rel=rel)

    for batch in seen:
        assert len(batch.ids) <= max(worst.samples for worst in planned.worst)
        assert batch.input_ids_BL.numel() <= max(worst.positions for worst in planned.worst)
        assert batch.supervised_tokens <= max(worst.supervised for worst in planned.worst)
        for modality, media in batch.media.items():
            assert len(media) <= max(worst.media[modality].count for worst in planned.worst)
    assert planned.expected.samples == about([len(b.ids) for b in seen], 0.15)
    assert planned.expected.supervised == about([b.supervised_tokens for b in seen], 0.1 if mixed else 0.15)
    assert planned.expected.positions == about([b.input_ids_BL.numel() for b in seen], 0.1 if mixed else 0.25)
    if mixed:
        assert all(len(b.ids) == planned.expected.samples == 12 / world for b in seen)
        for modality, share in (("image", 0.75), ("audio", 0.25)):
            assert planned.expected.media[modality].count == 12 / world * share
            assert 12 / world * share == about([len(b.media.get(modality, ())) for b in seen], 0.15)


@pytest.mark.usefixtures("without_steps")
def test_batches_that_cannot_be_shared(tree, run_plan):
    images = dict(tree["datasets"]["images"])
    tree["datasets"]["images"] |= {"batch_tokens": 50, "pack": 30}
    status, found = run_plan(tree, "--gpus", "2")
    assert status == 1 and any("datasets.images.batch_tokens: 50 positions" in line for line in found["problems"])
    tree["mixture"], tree["datasets"]["images"] = {"mode": "mixed", "batch_size": 12}, images
    tree["datasets"]["music"] = tree["datasets"]["sounds"] | {
        "processors": {"audio": {"name": "audio", "frames_per_clip": 64, "clips": 2}}
    }
    status, found = run_plan(tree, "--gpus", "5")
    assert status == 1 and any("'sounds' and 'music' into one batch" in line for line in found["problems"])
    assert any("mixture.batch_size: 12 samples cannot be shared by 5" in line for line in found["problems"])


def test_shares_are_the_mixture_s(tree, tmp_path):
    tree["datasets"]["images"]["weight"] = 3.0
    config = load_config(tiny.write_yaml(tmp_path, tree)).config
    assert shares(config.datasets, {"sounds": 4}, "random") == {"images": 0.75, "sounds": 0.25}
    assert shares(config.datasets, {}, "round_robin") == {"images": 0.5, "sounds": 0.5}
    mixture = Assembly(load_config(tmp_path / "run.yaml")).mixture(4000, 0)
    drawn = sum(int(c) == 0 for c in mixture.choices) / 4000
    assert shares(config.datasets, {"sounds": 12}, "random")["images"] == pytest.approx(drawn, abs=0.03) == 0.5
    config.datasets["images"].weight = None
    assert shares(config.datasets, {"images": 12, "sounds": 4}, "mixed") == {"images": 0.75, "sounds": 0.25}
