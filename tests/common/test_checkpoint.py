"""Checkpoint folders and the ledger."""

from __future__ import annotations

import pytest
import torch

from chatbridge.common.checkpoint import (
    CheckpointError,
    Retention,
    find_latest,
    load_trainer,
    load_weights,
    resolve_checkpoint,
    save_checkpoint,
)
from chatbridge.common.ledger import Ledger, LedgerEntry, TooManyBadSamples
from tests.tiny import json_lines


def save(folder, step, keep=2, every=0, best=False):
    weights = {"w": torch.full((2, 3), float(step))}
    return save_checkpoint(folder, step, weights, {"step": step}, "run: {}\n", Retention(keep, every), best)


def test_latest_is_the_last_whole_one_and_old_ones_go(tmp_path):
    for step in (5, 10, 15):
        save(tmp_path, step)
    folders = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert folders == ["latest", "step_00000010", "step_00000015"]
    latest = find_latest(tmp_path)
    assert latest.name == "step_00000015"
    assert load_weights(latest)["w"].tolist() == [[15.0] * 3] * 2
    assert load_trainer(latest) == {"step": 15}
    assert resolve_checkpoint(tmp_path) == latest == resolve_checkpoint(latest / "model.safetensors")


def test_a_write_cut_short_leaves_the_one_before(tmp_path, monkeypatch):
    save(tmp_path, 5)
    monkeypatch.setattr(torch, "save", lambda *a: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(CheckpointError, match=r"No space.*step_00000005 is intact"):
        save(tmp_path, 10)
    assert not list((tmp_path / "checkpoints").glob(".partial*"))
    assert find_latest(tmp_path).name == "step_00000005"
    assert load_trainer(find_latest(tmp_path)) == {"step": 5}


def test_milestones_and_the_best_stay(tmp_path):
    for step in range(5, 45, 5):
        save(tmp_path, step, keep=1, every=20, best=step == 15)
    folders = sorted(p.name for p in (tmp_path / "checkpoints").glob("step_*"))
    assert folders == ["step_00000015", "step_00000020", "step_00000040"]
    assert (tmp_path / "checkpoints" / "best").read_text().splitlines()[0] == "step_00000015"


def test_a_flipped_bit_of_the_pointer_is_noticed(tmp_path):
    for step in (5, 7):
        save(tmp_path, step)
    pointer = tmp_path / "checkpoints" / "latest"
    pointer.write_text(pointer.read_text().replace("step_00000007", "step_00000005"))
    with pytest.raises(CheckpointError, match="latest: names 'step_00000005', which is not what was written"):
        find_latest(tmp_path)
    pointer.write_text("step_00000005")  # as earlier versions wrote it
    assert find_latest(tmp_path).name == "step_00000005"


def test_missing_and_damaged_are_named(tmp_path):
    assert find_latest(tmp_path) is None
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        resolve_checkpoint(tmp_path)
    folder = save(tmp_path, 5)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors file"):
        load_weights(folder)
    (folder / "trainer.pt").write_bytes(b"not a pickle")
    with pytest.raises(CheckpointError, match=r"trainer\.pt: damaged"):
        load_trainer(folder)


def entry(i: int) -> LedgerEntry:
    return LedgerEntry("coco", f"s{i}", f"{i}.jpg", "truncated", f"s{i + 1}")


def test_ledger_counts_writes_and_stops(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", max_share=0.1, grace=20)
    ledger.add(["coco"] * 10, [entry(1), entry(2)])  # a share of 20 %, but too few samples to judge
    ledger.add(["coco"] * 20, [])
    with pytest.raises(TooManyBadSamples, match=r"'coco': 4 of 32 .*max_bad_share allows 10\.0%.*2\.jpg: truncated"):
        ledger.add(["coco"] * 2, [entry(1), entry(2)])
    rows = json_lines(tmp_path / "ledger.jsonl")
    assert [row["file"] for row in rows] == ["1.jpg", "2.jpg", "1.jpg", "2.jpg"]
    again = Ledger(None, 0.1)
    again.load_state_dict(ledger.state_dict())
    assert again.seen == {"coco": 32} and again.replaced == {"coco": 4}
