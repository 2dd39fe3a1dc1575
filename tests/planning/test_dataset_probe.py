"""What ``train.py --plan`` says of data: first samples, and what the probe of some items finds."""

from __future__ import annotations

import io
import tarfile

import pytest

from chatbridge.common.config import load_config
from chatbridge.runners.assembly import Assembly
from tests import tiny

pytestmark = pytest.mark.usefixtures("without_steps")


def test_first_samples_are_those_that_training_reads(tree, tmp_path, run_plan):
    _, found = run_plan(tree, "--samples", "2")
    first, second = found["data"]["datasets.images"]["samples"]
    assert first["text"] == "<image x4>⟦a red picture\\n⟧" and second["text"] == "<image x4>⟦a green picture\\n⟧"
    dataset = Assembly(load_config(tmp_path / "run.yaml")).datasets["images"]
    example, _ = dataset.example(1, 0)
    assert second["positions"] == len(example.tokens) and second["cut"] == 0
    assert second["supervised"] == sum(label != -100 for label in example.tokens.labels)


def test_supervised_tokens_of_a_dialogue_are_marked(tmp_path, run_plan):
    _, found = run_plan(tiny.make_config(tmp_path, "instruction"))
    (sample,) = found["data"]["datasets.chats"]["samples"]
    before, rest = sample["text"].split("⟦")
    answer, after = rest.split("⟧")
    assert "<image x4>" in before and "<audio x4>" in before and "What colour is it?" in before
    assert answer.startswith("red") and answer.rstrip().endswith("###") and after == ""


def test_the_probe_counts_unreadable_media_and_cut_text(tree, tmp_path, run_plan):
    (tmp_path / "media" / "3.jpg").write_bytes(b"")
    tree["task"]["max_txt_len"] = 3
    status, found = run_plan(tree)
    probe = found["data"]["datasets.images"]["probe"]
    assert probe["items"] == probe["read"] == 12
    assert len(probe["unreadable"]) == 1 and "3.jpg" in probe["unreadable"][0]
    assert probe["labels_after"] == 12 * 3 and probe["labels_before"] > 12 * 3
    assert probe["cut_tokens"] == probe["labels_before"] - probe["labels_after"] and probe["cut_items"] == 12
    assert found["steps"]["images"]["measured"] and found["steps"]["images"]["expected"]["length"] == 1 + 4 + 3
    assert status == 0 and any("1 of 12 items tried cannot be used" in line for line in found["warnings"])
    assert not found["data"]["datasets.sounds"]["probe"]["unreadable"]


def test_media_too_often_unreadable_would_stop_the_run(tree, tmp_path, run_plan):
    for i in range(0, 12, 2):
        (tmp_path / "media" / f"{i}.jpg").write_bytes(b"")
    status, found = run_plan(tree)
    assert status == 1 and any("datasets.images: 6 of 12" in line for line in found["problems"])
    tree["run"]["max_bad_share"] = 0.6
    assert run_plan(tree)[0] == 0


def test_labels_that_truncation_removes(tmp_path, run_plan):
    tree = tiny.make_config(tmp_path, "instruction")
    tree["task"] |= {"max_txt_len": 24, "compat": "original"}
    tree["datasets"]["chats"] |= {"kind": "ti-conv"}
    _, found = run_plan(tree)
    probe = found["data"]["datasets.chats"]["probe"]
    assert probe["without_label"] == 12 and probe["labels_after"] == 0 < probe["labels_before"]
    assert any("leaves 12 of 12 items without a label" in line for line in found["warnings"])


def test_data_can_be_looked_at_before_the_language_model_is_there(tree, tmp_path, run_plan):
    tree["model"]["llm"]["path"] = str(tmp_path / "vicuna-13b-v1.5")
    status, found = run_plan(tree)
    assert status == 1 and len(found["missing"]) == 1 and not found["problems"]
    shown = found["data"]["datasets.images"]
    assert shown["samples"][0] == {"id": "0.jpg", "text": "<image>⟦a red picture\\n⟧"}
    assert shown["probe"]["read"] == 12 and shown["probe"]["lengths"] == []
    assert found["model"]["language_model"] == "the published architecture vicuna-13b-v1.5"
    assert not found["steps"]["images"]["measured"]


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
    status, found = run_plan(tree)
    shown = found["data"]["datasets.tars"]
    assert shown["samples"][0]["text"] == "<image x4>⟦a red picture\\n⟧"
    assert shown["probe"]["items"] == 6 and len(shown["probe"]["refused"]) == 1
    assert shown["probe"]["read"] == 5 and not shown["probe"]["unreadable"]
    assert found["steps"]["tars"]["measured"] and status == 0
