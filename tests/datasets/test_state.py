"""Position is state: what is read after a restart is what would have been read without one."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from chatbridge.common.checkpoint import find_latest, load_trainer
from chatbridge.common.ledger import Ledger, LedgerEntry, join_counts
from tests import tiny
from tests.datasets.tools import folder_set, names, shards, stream, take, through_disk, write_folder, write_shards
from tests.processes import Run, arguments, assert_same


def datasets(root, budget=None):
    """One of each way of reading: folder, shards by number, shards in sequence."""
    if not (root / "folder").exists():
        write_folder(root / "folder", 30)
        write_shards(root / "near", [7, 5, 9], index=True)
        write_shards(root / "far", [8, 3, 10, 6])
    keys = {} if budget is None else {"batch_tokens": budget}
    return [
        folder_set(root / "folder", **keys),
        shards(root / "near", "near", shuffle=6, **keys),
        shards(root / "far", "far", access="sequence", shuffle=5, weight=2.0, **keys),
    ]


@pytest.mark.parametrize("budget", [None, 120])
@pytest.mark.parametrize("workers", [0, 2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("world", [1, 2])
def test_the_sequence_of_ids_survives_a_restart(tmp_path, workers, world, budget):
    sets = datasets(tmp_path, budget)
    steps, cut = (24, 11) if workers else (40, 17)

    def streams():
        return [stream(datasets(tmp_path, budget), steps, rank, world, workers) for rank in range(world)]

    whole = [names(take(one, steps)) for one in streams()]
    first = streams()
    before = [names(take(one, cut)) for one in first]
    states = through_disk([one.state_dict() for one in first])
    second = streams()
    for one in second:
        one.load_state_dict(states)
    after = [names(take(one, steps - cut)) for one in second]
    assert [a + b for a, b in zip(before, after, strict=True)] == whole
    assert {name for name, _ in whole[0]} == {dataset.name for dataset in sets}


def test_batches_are_equal_to_the_last_bit_after_a_restart(tmp_path):
    one = stream(datasets(tmp_path), 20)
    take(one, 9)
    state = through_disk([one.state_dict()])
    two = stream(datasets(tmp_path), 20)
    two.load_state_dict(state)
    for a, b in zip(take(one, 11), take(two, 11), strict=True):
        assert torch.equal(a.input_ids_BL, b.input_ids_BL)
        assert torch.equal(a.media["image"], b.media["image"])


def test_the_state_is_what_was_handed_out_not_what_workers_fetched(tmp_path):
    """With prefetching workers the state equals that of a loader that reads only when asked."""
    ahead = stream(datasets(tmp_path)[2:], 40, workers=1)
    take(ahead, 7)
    time.sleep(0.3)
    strict = stream(datasets(tmp_path)[2:], 40)
    take(strict, 7)
    assert ahead.state_dict() == strict.state_dict()
    assert strict.state_dict()["cursors"]["far"][0]["position"] == 28


def test_a_state_names_the_shard_and_the_place_in_the_shuffle_buffer(tmp_path):
    one = stream(datasets(tmp_path)[2:], 40)
    take(one, 2)
    state = one.state_dict()
    assert state["step"] == 2 and state["drawn"] == {"far": 2}
    (part,) = state["cursors"]["far"][0]["lists"]
    assert part.keys() == {"epoch", "window", "start", "taken"} and part["window"] == 1 and part["taken"] == 3


@pytest.mark.parametrize(
    ("cut", "part"),
    [
        (0, {"epoch": 0, "window": -1, "taken": 0, "runs": [], "next": [0, 0, 0]}),
        (2, {"epoch": 0, "window": 1, "taken": 1, "runs": [[0, 3, 6, 6144]], "next": [0, 6, 12288]}),
        (3, {"epoch": 0, "window": 1, "taken": 0, "runs": [], "next": [0, 6, 12288]}),
        (3, {"epoch": 0, "window": 1, "taken": 0, "runs": [], "next": [0, 6]}),
    ],
)
def test_states_of_earlier_checkpoints_still_serve(tmp_path, cut, part):
    """They list the samples of the shuffle buffer, with or without the bytes at which those begin."""
    write_shards(tmp_path, [20])

    def one():
        return stream([shards(tmp_path, access="sequence", shuffle=3, batch_size=2)], 20)

    whole, second = names(take(one(), 12)), one()
    cursor = {"shards": {0: {"position": 2 * cut, "lists": [part]}}}
    state = {"step": cut, "workers": 1, "sizes": {}, "lanes": cursor}
    second.load_state_dict(through_disk([state]))
    assert names(take(second, 12 - cut)) == whole[cut:]


def test_map_style_and_numbered_shards_do_not_care_about_workers(tmp_path):
    sets = datasets(tmp_path)[:2]
    assert names(take(stream(sets, 12, workers=2), 12)) == names(take(stream(sets, 12), 12))
    halves = [names(take(stream(sets, 12, rank, 2), 12)) for rank in (0, 1)]
    joined = [(name, a + b) for (name, a), (_, b) in zip(*halves, strict=True)]
    assert joined == names(take(stream(sets, 12), 12))


def test_another_number_of_workers_is_logged_and_goes_on(tmp_path, caplog):
    one = stream(datasets(tmp_path), 60, workers=2)
    read = take(one, 12)
    two = stream(datasets(tmp_path), 60)
    with caplog.at_level("WARNING", "chatbridge"):
        two.load_state_dict([one.state_dict()], accept_new_workers=True)
    assert "'far' was read by 1 x 2 workers" in caplog.text and "begin a new epoch" in caplog.text
    assert "'near'" not in caplog.text
    alone = names(take(stream(datasets(tmp_path), 60), 60))
    rest = names(take(two, 48))
    assert [b for b in rest if b[0] != "far"] == [b for b in alone[12:] if b[0] != "far"]
    assert names(read) != rest


def test_another_number_of_workers_under_a_budget_loses_nothing(tmp_path):
    write_folder(tmp_path / "folder", 40)

    def one(workers):
        return stream([folder_set(tmp_path / "folder", batch_tokens=150)], 60, workers=workers)

    first = one(2)
    seen = [i for _, ids in names(take(first, 3)) for i in ids]
    second = one(0)
    second.load_state_dict(through_disk([first.state_dict()]), accept_new_workers=True)
    while len(set(seen)) < 40:
        seen += next(second).ids
    assert len(seen) <= 52  # one epoch, a few twice


def test_the_ledger_goes_back_to_the_checkpoint_too(tmp_path):
    """Entries of steps that are read again after a restart are not in the file twice."""
    file = tmp_path / "ledger.jsonl"
    ledger = Ledger(file, 1.0)
    ledger.add(["a"] * 4, [LedgerEntry("a", "1", "1.jpg", "bad", "2")])
    state = through_disk(ledger.state_dict())
    ledger.add(["a"] * 4, [LedgerEntry("a", "3", "3.jpg", "bad", "4"), LedgerEntry("a", "x", "x.tar", "cut", "5", 9)])
    again = Ledger(file, 1.0)
    again.load_state_dict(state)
    assert len(file.read_text().splitlines()) == 1
    assert again.seen == {"a": 4} and again.replaced == {"a": 1} and again.lost.total() == 0
    counts = join_counts([ledger.state_dict(), state])
    assert counts == {"seen": {"a": 12}, "replaced": {"a": 3}, "lost": {"a": 9}, "retried": {}}


def test_changed_data_is_logged(tmp_path, caplog):
    one = stream(datasets(tmp_path), 20)
    take(one, 3)
    write_folder(tmp_path / "folder", 31)
    two = stream(datasets(tmp_path), 20)
    with caplog.at_level("WARNING", "chatbridge"):
        two.load_state_dict([one.state_dict()])
    assert "'folder' had 30 samples when the checkpoint was written and has 31 now" in caplog.text


def test_a_killed_training_run_goes_on_as_if_nothing_had_happened(tmp_path):
    """SIGKILL in the middle of training with two workers; ids, losses and weights equal an uninterrupted run's."""
    tree = tiny.make_config(tmp_path, max_steps=14, checkpoint_every=2, num_workers=2)
    write_shards(tmp_path / "tars", [9, 7, 8])
    for name, access in (("near", "number"), ("far", "sequence")):
        tree["datasets"][name] = {
            "builder": "webdataset", "folder": str(tmp_path / "tars"), "kind": "ti-cap", "access": access,
            "batch_size": 4, "shuffle": 5, "weight": 3.0,
        }  # fmt: skip
    yaml, whole, parts = tiny.write_yaml(tmp_path, tree), tmp_path / "whole", tmp_path / "parts"
    assert Run(whole, arguments(yaml, whole)).wait() == [0]
    run = Run(parts, arguments(yaml, parts))
    assert run.until(lambda: find_latest(parts))
    run.kill()
    cut = load_trainer(find_latest(parts))["step"]
    assert cut < 14
    again = Run(parts, arguments(yaml, parts))
    assert again.wait() == [0] and f"resumed at step {cut} of 14" in again.text()
    assert_same(whole, parts)
    a, b = (load_trainer(find_latest(output))["reading"] for output in (whole, parts))
    assert a == b and a[0]["batches"]["cursors"]["far"].keys() == {0, 1}


@pytest.mark.slow
def test_a_program_that_fails_ends_with_its_workers(tmp_path):
    """They leave SIGTERM to the training process, and Python waits at its end for every child."""
    write_folder(tmp_path, 20)
    failing = (
        "import sys; from pathlib import Path; from tests.datasets.tools import folder_set, stream\n"
        "batches = stream([folder_set(Path(sys.argv[1]))], 200, workers=2)\n"
        "next(batches)\n"
        "raise RuntimeError('in the middle')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", failing, str(tmp_path)], cwd=tiny.ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and done.stderr.strip().endswith("RuntimeError: in the middle")
