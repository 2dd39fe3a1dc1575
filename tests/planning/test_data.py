"""What ``train.py --plan`` says of data: samples, the probe, shares and the shapes of batches."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
import torch

from chatbridge import register_all
from chatbridge.common.config import load_config
from chatbridge.planning import PlanOptions, plan
from chatbridge.planning.batches import expected_maximum, shares
from chatbridge.runners.assembly import Assembly
from tests import tiny


@pytest.fixture(autouse=True)
def registered():
    register_all()


@pytest.fixture
def tree(tmp_path):
    return tiny.make_config(tmp_path)


def test_first_samples_are_those_that_training_reads(tree, tmp_path, run_plan):
    _, told = run_plan(tree, "--samples", "2")
    first, second = told["data"]["datasets.images"]["samples"]
    assert first["text"] == "<image x4>⟦a red picture\\n⟧" and second["text"] == "<image x4>⟦a green picture\\n⟧"
    dataset = Assembly(load_config(tmp_path / "run.yaml")).datasets["images"]
    example, _ = dataset.example(1, 0)
    assert second["positions"] == len(example.tokens) and second["cut"] == 0
    assert second["supervised"] == sum(label != -100 for label in example.tokens.labels)


def test_supervised_tokens_of_a_dialogue_are_marked(tmp_path, run_plan):
    _, told = run_plan(tiny.make_config(tmp_path, "instruction"))
    (sample,) = told["data"]["datasets.chats"]["samples"]
    before, rest = sample["text"].split("⟦")
    answer, after = rest.split("⟧")
    assert "<image x4>" in before and "<audio x4>" in before and "What colour is it?" in before
    assert answer.startswith("red") and answer.rstrip().endswith("###") and after == ""


def test_the_probe_counts_unreadable_media_and_cut_text(tree, tmp_path, run_plan):
    (tmp_path / "media" / "3.jpg").write_bytes(b"")
    tree["task"]["max_txt_len"] = 3
    status, told = run_plan(tree)
    probe = told["data"]["datasets.images"]["probe"]
    assert probe["items"] == probe["read"] == 12
    assert len(probe["unreadable"]) == 1 and "3.jpg" in probe["unreadable"][0]
    assert probe["labels_after"] == 12 * 3 and probe["labels_before"] > 12 * 3
    assert probe["cut_tokens"] == probe["labels_before"] - probe["labels_after"] and probe["cut_items"] == 12
    assert told["steps"]["images"]["measured"] and told["steps"]["images"]["expected"]["length"] == 1 + 4 + 3
    assert status == 0 and any("1 of 12 items tried cannot be used" in line for line in told["warnings"])
    assert not told["data"]["datasets.sounds"]["probe"]["unreadable"]


def test_media_too_often_unreadable_would_stop_the_run(tree, tmp_path, run_plan):
    for i in range(0, 12, 2):
        (tmp_path / "media" / f"{i}.jpg").write_bytes(b"")
    status, told = run_plan(tree)
    assert status == 1 and any("datasets.images: 6 of 12" in line for line in told["problems"])
    tree["run"]["max_bad_share"] = 0.6
    assert run_plan(tree)[0] == 0


def test_labels_that_truncation_removes(tmp_path, run_plan):
    tree = tiny.make_config(tmp_path, "instruction")
    tree["task"] |= {"max_txt_len": 24, "compat": "original"}
    tree["datasets"]["chats"] |= {"kind": "ti-conv"}
    _, told = run_plan(tree)
    probe = told["data"]["datasets.chats"]["probe"]
    assert probe["without_label"] == 12 and probe["labels_after"] == 0 < probe["labels_before"]
    assert any("leaves 12 of 12 items without a label" in line for line in told["warnings"])


def test_data_can_be_looked_at_before_the_language_model_is_there(tree, tmp_path, run_plan):
    tree["model"]["llm"]["path"] = str(tmp_path / "vicuna-13b-v1.5")
    status, told = run_plan(tree)
    assert status == 1 and len(told["missing"]) == 1 and not told["problems"]
    shown = told["data"]["datasets.images"]
    assert shown["samples"][0] == {"id": "0.jpg", "text": "<image>⟦a red picture\\n⟧"}
    assert shown["probe"]["read"] == 12 and shown["probe"]["lengths"] == []
    assert told["model"]["language_model"] == "the published architecture vicuna-13b-v1.5"
    assert not told["steps"]["images"]["measured"]


def test_a_batch_is_as_long_as_its_longest_sample():
    values = [3, 9, 5, 5]
    torch.manual_seed(0)
    drawn = torch.tensor(values, dtype=torch.float)[torch.randint(4, (200_000, 3))].max(1).values.mean()
    chances = {3: 0.25, 9: 0.25, 5: 0.5}
    assert expected_maximum(chances, 3) == pytest.approx(float(drawn), rel=0.005)
    assert expected_maximum(chances, 1) == pytest.approx(5.5)


BATCHES = {
    "a row each": {"batch_size": 6},
    "packed": {"batch_size": 8, "pack": 30},
    "a budget": {"batch_tokens": 60},
    "a packed budget": {"batch_tokens": 60, "pack": 30},
}


@pytest.mark.parametrize("case", BATCHES)
def test_batches_are_as_planned(tree, tmp_path, case):
    """What the data loader makes, against the shapes that were planned."""
    for index in range(12):  # captions of different lengths
        tree_file = tmp_path / "media" / "images.json"
        entries = json.loads(tree_file.read_text())
        entries[index]["caption"] = "a red picture" + " and more" * (index % 4)
        tree_file.write_text(json.dumps(entries))
    tree["datasets"] = {"images": tree["datasets"]["images"] | BATCHES[case]}
    tree["task"]["max_txt_len"] = 12
    found = plan(tiny.write_yaml(tmp_path, tree), PlanOptions(gpus=1))
    (planned,) = found.datasets
    assembly = Assembly(load_config(tmp_path / "run.yaml"))
    batches = assembly.batches(assembly.mixture(40, 0), 0, 1, 0, False)
    seen = [next(batches) for _ in range(40)]

    def mean(values):
        return sum(values) / len(seen)

    for batch in seen:
        assert len(batch.ids) <= max(worst.samples for worst in planned.worst)
        assert batch.input_ids_BL.numel() <= max(worst.positions for worst in planned.worst)
        assert batch.supervised_tokens <= max(worst.supervised for worst in planned.worst)
        assert len(batch.media["image"]) <= max(worst.media["image"].count for worst in planned.worst)
    assert planned.expected.samples == pytest.approx(mean([len(b.ids) for b in seen]), rel=0.15)
    assert planned.expected.supervised == pytest.approx(mean([b.supervised_tokens for b in seen]), rel=0.15)
    assert planned.expected.positions == pytest.approx(mean([b.input_ids_BL.numel() for b in seen]), rel=0.25)


def test_a_budget_that_holds_no_row(tree, run_plan):
    tree["datasets"]["images"] |= {"batch_tokens": 50, "pack": 30}
    assert run_plan(tree, "--gpus", "1")[0] == 0
    status, told = run_plan(tree, "--gpus", "2")
    assert status == 1 and any("datasets.images.batch_tokens: 50 positions" in line for line in told["problems"])


@pytest.mark.parametrize("access", ["number", "sequence"])
def test_shards_are_looked_at(tree, tmp_path, run_plan, access):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for index in range(6):
            members = {"jpg": (tmp_path / "media" / f"{index}.jpg").read_bytes(), "txt": b"a red picture"}
            for ending, data in members.items() if index != 2 else [("txt", b"no picture")]:
                member = tarfile.TarInfo(f"{index:03}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    shards = {"builder": "webdataset", "shards": "0.tar", "folder": str(tmp_path), "access": access}
    tree["datasets"] = {"tars": shards | {"kind": "ti-cap", "batch_size": 4, "weight": 1.0}}
    status, told = run_plan(tree)
    shown = told["data"]["datasets.tars"]
    assert shown["samples"][0]["text"] == "<image x4>⟦a red picture\\n⟧"
    assert shown["probe"]["items"] == 6 and len(shown["probe"]["refused"]) == 1
    assert shown["probe"]["read"] == 5 and not shown["probe"]["unreadable"]
    assert told["steps"]["tars"]["measured"] and status == 0


def test_shares_are_the_mixture_s(tree, tmp_path):
    tree["datasets"]["images"]["weight"] = 3.0
    config = load_config(tiny.write_yaml(tmp_path, tree)).config
    assert shares(config.datasets, {"sounds": 4}, "random") == {"images": 0.75, "sounds": 0.25}
    assert shares(config.datasets, {}, "round_robin") == {"images": 0.5, "sounds": 0.5}
    mixture = Assembly(load_config(tmp_path / "run.yaml")).mixture(4000, 0)
    drawn = sum(int(c) == 0 for c in mixture.choices) / 4000
    assert shares(config.datasets, {"sounds": 12}, "random")["images"] == pytest.approx(drawn, abs=0.03) == 0.5
