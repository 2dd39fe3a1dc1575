"""``mixture.mode: mixed``: batches of several datasets, the same ones whatever reads them, and their settings."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
import yaml

import train
from chatbridge.common.config import load_config
from chatbridge.common.ledger import Ledger, LedgerEntry, TooManyBadSamples
from chatbridge.common.schema import ConfigError
from chatbridge.datasets.collate import Collator
from chatbridge.datasets.streams import stream_of
from chatbridge.runners.assembly import Assembly
from tests import tiny
from tests.datasets.tools import folder_set, shards, stream, take, through_disk, write_folder, write_shards

SIZE = 8
"""Samples of a batch, over all ranks."""


def numbered(root) -> list:
    """Two datasets whose samples are read by number."""
    if not (root / "folder").exists():
        write_folder(root / "folder", 30)
        write_shards(root / "near", [7, 5, 9], index=True)
    return [folder_set(root / "folder"), shards(root / "near", "near", shuffle=6, weight=0.5)]


def every(root) -> list:
    """These, and shards that are read in sequence."""
    if not (root / "far").exists():
        write_shards(root / "far", [8, 3, 10, 6])
    return [*numbered(root), shards(root / "far", "far", access="sequence", shuffle=5, weight=1.5)]


def sources_and_ids(batches) -> list[list[tuple[str, str]]]:
    """(dataset, id) of every sample of every batch."""
    return [list(zip(batch.sources, batch.ids, strict=True)) for batch in batches]


def streams(sets, root, steps, world=1, workers=0) -> list:
    return [stream(sets(root), steps, rank, world, workers, mixed=SIZE) for rank in range(world)]


def joined(ranks: list[list[list]]) -> list[list]:
    """Step by step, what all ranks read."""
    return [[one for rank in step for one in rank] for step in zip(*ranks, strict=True)]


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (1, 4), (2, 0), (4, 0), (2, 2)])
def test_ranks_and_workers_change_nothing_in_what_is_read_by_number(tmp_path, world, workers):
    alone = sources_and_ids(take(stream(numbered(tmp_path), 12, mixed=SIZE), 12))
    ranks = [sources_and_ids(take(one, 12)) for one in streams(numbered, tmp_path, 12, world, workers)]
    assert joined(ranks) == alone and all(len(batch) == SIZE // world for rank in ranks for batch in rank)
    assert any(len({name for name, _ in batch}) > 1 for batch in alone)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_streams_and_numbers_go_on_after_a_restart(tmp_path, workers, world):
    steps = 16
    whole = [sources_and_ids(take(one, steps)) for one in streams(every, tmp_path, steps, world, workers)]
    assert {name for rank in whole for batch in rank for name, _ in batch} == {"folder", "near", "far"}
    for cut in range(0, steps, 5 if workers else 1):
        first = streams(every, tmp_path, steps, world, workers)
        before = [sources_and_ids(take(one, cut)) for one in first]
        states = through_disk([one.state_dict() for one in first])
        second = streams(every, tmp_path, steps, world, workers)
        for one in second:
            one.load_state_dict(states)
        after = [sources_and_ids(take(one, steps - cut)) for one in second]
        assert [a + b for a, b in zip(before, after, strict=True)] == whole


def test_streams_of_mixed_batches_go_through_their_part_in_order(tmp_path):
    """Nothing is left out or read twice: a worker's samples are those of its stream alone, batch after batch."""
    workers: dict[int, list[str]] = {}
    for rank, one in enumerate(streams(every, tmp_path, 20, 2, 2)):
        for step, batch in enumerate(sources_and_ids(take(one, 20))):
            workers.setdefault(rank * 2 + step % 2, []).extend(name for source, name in batch if source == "far")
    for number, read in workers.items():
        alone = stream_of(every(tmp_path)[2], 3, number, 4, None)
        assert read == [alone.next()[0].tokens.id for _ in read] and len(read) > 10


def test_a_batch_carries_the_positions_of_several_streams(tmp_path):
    sets = []
    for name in ("a", "b"):
        write_shards(tmp_path / name, [9, 9])
        sets.append(shards(tmp_path / name, name, access="sequence", shuffle=0))
    one = stream(sets, 10, workers=2, mixed=SIZE)
    batches = take(one, 5)
    assert all(batch.cursor.keys() == set(batch.sources) for batch in batches)
    read = Counter(source for batch in batches for source in batch.sources)
    cursors = through_disk(one.state_dict())["cursors"]
    assert {name: sum(state["position"] for state in found.values()) for name, found in cursors.items()} == read
    assert cursors["a"].keys() == cursors["b"].keys() == {0, 1}
    assert one.state_dict()["drawn"] == read


@pytest.mark.parametrize("mixed", [None, SIZE])
def test_other_numbers_of_ranks_go_on_where_the_epoch_stood(tmp_path, mixed):
    """2 ranks, then 1, then 4: what one rank would have read, so every sample of an epoch once."""
    alone = sources_and_ids(take(stream(numbered(tmp_path), 24, mixed=mixed), 24))
    read, states = [], None
    for world, steps in ((2, 3), (1, 5), (4, 16)):
        ranks = [stream(numbered(tmp_path), 24, rank, world, mixed=mixed) for rank in range(world)]
        for one in ranks:
            if states is not None:
                one.load_state_dict(states)
        read += joined([sources_and_ids(take(one, steps)) for one in ranks])
        states = through_disk([one.state_dict() for one in ranks])
    assert read == alone
    for dataset, size in (("folder", 30), ("near", 21)):
        own = [name for batch in read for source, name in batch if source == dataset]
        assert len(own) >= size and len(set(own[:size])) == size


@pytest.mark.parametrize("mixed", [None, SIZE])
@pytest.mark.parametrize(("world", "workers", "keys"), [(2, 0, "world"), (1, 2, "run.num_workers")])
def test_streams_of_other_workers_are_refused(tmp_path, mixed, world, workers, keys, caplog):
    one = stream(every(tmp_path), 40, mixed=mixed)
    take(one, 9)
    state = through_disk(one.state_dict())
    two = stream(every(tmp_path), 40, 0, world, workers, mixed=mixed)
    with pytest.raises(ValueError) as refused:
        two.load_state_dict([state])
    text = str(refused.value)
    del refused  # it holds the stream in a cycle, whose workers would be ended by the collector, out of order
    assert f"'far' was read by 1 x 1 workers (processes x run.num_workers), now by {world} x {max(1, workers)}" in text
    assert "'folder'" not in text and "take 1 processes and run.num_workers: 1" in text
    assert f"run.accept_changes: [{keys}]" in text
    with caplog.at_level("WARNING", "chatbridge"):
        two.load_state_dict([state], accept_new_workers=True)
    assert "'far' was read by" in caplog.text and "begin a new epoch" in caplog.text
    after = [name for batch in take(two, 12) for name in batch.sources]
    assert "far" in after and "folder" in after


def test_sources_name_the_dataset_of_every_sample(tmp_path):
    assert all(b.sources == [b.dataset] * len(b.ids) for b in take(stream(every(tmp_path), 12), 12))
    for batch in take(stream(every(tmp_path), 12, mixed=SIZE), 12):
        assert len(batch.sources) == len(batch.ids) == SIZE
        assert all(name.startswith(source) for source, name in zip(batch.sources, batch.ids, strict=True))
    four = [take(one, 12) for one in streams(every, tmp_path, 12, 4)]
    assert any(len(set(batch.sources)) == 1 for one in four for batch in one)
    assert {batch.dataset for one in four for batch in one} == {"mixed"}  # ranks agree on what a step is


def test_sources_of_packed_rows(tmp_path):
    write_folder(tmp_path / "folder", 30)
    (batch,) = take(stream([folder_set(tmp_path / "folder", pack=40, batch_size=8)], 1), 1)
    assert batch.sources == ["folder"] * 8 and len(batch.input_ids_BL) < 8


def test_the_ledger_counts_every_dataset_of_a_batch(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", 0.4, grace=4)
    bad = LedgerEntry("b", "1", "1.jpg", "bad", "2")
    ledger.add(["a", "b", "a", "b"], [bad, LedgerEntry("a", "x", "x.tar", "opened again", count=0)])
    assert ledger.seen == {"a": 2, "b": 2} and ledger.replaced == {"b": 1} and ledger.retried == {"a": 1}
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 2
    ledger.sizes = {"a": 1000}
    with pytest.raises(TooManyBadSamples, match="dataset 'b': 2 of 4 samples"):
        ledger.add(["a", "b", "b", "a"], [LedgerEntry("a", "t", "t.tar", "cut", count=7), bad])
    assert ledger.lost == {"a": 7} and len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 4


@pytest.fixture
def tree(tmp_path):
    return tiny.make_config(tmp_path) | {"mixture": {"mode": "mixed", "batch_size": 6}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mixture": {"mode": "mixed"}}, "mixture: batch_size: required where mode is mixed"),
        ({"mixture": {"batch_size": 8}}, "mixture: batch_size: belongs to mode: mixed; where mode is random"),
        ({"mixture": {"mode": "mix", "batch_size": 8}}, "mixture.mode: 'mix' is not allowed; did you mean 'mixed'"),
        ({"run.mixture": "random"}, "run.mixture: unknown key; it is mixture.mode, a section of its own now"),
        ({"datasets.images.pack": 64}, "datasets.images.pack: batches of several datasets"),
        ({"datasets.sounds.batch_tokens": 640}, "datasets.sounds.batch_tokens: batches of several datasets"),
    ],
)
def test_settings_that_do_not_go_together(tree, tmp_path, change, said):
    for where, value in change.items():
        node = tree
        *path, last = where.split(".")
        for name in path:
            node = node[name]
        node[last] = value
    with pytest.raises(ConfigError) as refused:
        load_config(tiny.write_yaml(tmp_path, tree))
    assert said in str(refused.value)


def test_the_global_batch_must_be_shared_evenly(tree, tmp_path):
    tree["datasets"]["images"]["batch_size"] = 5  # not used here
    assembly = Assembly(load_config(tiny.write_yaml(tmp_path, tree)))
    assembly.batches(assembly.mixture(4, 0), 0, 3, 0, False)
    with pytest.raises(ValueError, match="mixture.batch_size: 6 samples cannot be shared by 4 processes"):
        assembly.batches(assembly.mixture(4, 0), 0, 4, 0, False)


def test_media_of_different_shapes_are_refused_before_training(tree, tmp_path, capsys):
    longer = {"audio": {"name": "audio", "frames_per_clip": 64, "clips": 2}}
    tree["datasets"]["music"] = tree["datasets"]["sounds"] | {"processors": longer}
    config = str(tiny.write_yaml(tmp_path, tree))
    said = "of 'sounds' and 'music' into one batch, but their 'audio' has the shapes (1, 64, 64) and (2, 64, 64)"
    for more in ([], ["--check"]):
        assert train.main(["--cfg-path", config, *more]) == 1
        assert said in capsys.readouterr().err
    del tree["mixture"]
    assert tiny.run(tmp_path, tree, "--check") == 0


def test_a_shape_that_only_shows_while_reading_names_both_datasets(tmp_path):
    assembly = Assembly(load_config(tiny.write_yaml(tmp_path, tiny.make_config(tmp_path))))
    examples = [assembly.datasets["sounds"].example(index, 0)[0] for index in (0, 1)]
    examples[1].media["audio"] = [torch.zeros(2, 64, 64)]
    with pytest.raises(ValueError, match=r"'audio' differ .* \(1, 64, 64\) in 'sounds', \(2, 64, 64\) in 'music'"):
        Collator.of(assembly.tokenizer)(examples, ["sounds", "music"])


def test_weights_left_out_are_sizes_in_samples(tree, tmp_path):
    sounds = tmp_path / "media" / "sounds.json"
    sounds.write_text(json.dumps(json.loads(sounds.read_text())[:4]))
    tree["datasets"]["images"]["batch_size"] = 1
    assembly = Assembly(load_config(tiny.write_yaml(tmp_path, tree)))
    assert assembly.mixture(4, 0).shares.tolist() == [12 / 16, 4 / 16]


def test_a_step_on_several_modalities_is_the_sum_of_its_samples(tree, tmp_path):
    """Tokens weigh the same, whichever dataset they are from."""
    assembly = Assembly(load_config(tiny.write_yaml(tmp_path, tree)))
    model = assembly.model().eval()
    batch = next(assembly.batches(assembly.mixture(4, 0), 0, 1, 0, False))
    assert set(batch.media) == {"image", "audio"} and set(batch.sources) == {"images", "sounds"}
    collator, loss = Collator.of(assembly.tokenizer), 0.0
    for draw, name in zip(assembly.mixture(4, 0).plan(0).draws, batch.ids, strict=True):
        dataset = list(assembly.datasets.values())[draw.dataset]
        alone = collator([dataset.example(draw.index, draw.epoch)[0]], dataset.name)
        assert alone.ids == [name]
        loss += float(model(alone).loss_sum.detach())
    assert float(model(batch).loss_sum.detach()) == pytest.approx(loss, rel=1e-4)


def test_training_on_mixed_batches(tree, tmp_path):
    (tmp_path / "media" / "3.jpg").write_bytes(b"")
    tree["run"] |= {"max_steps": 8, "max_bad_share": 0.9, "num_workers": 1}
    assert tiny.run(tmp_path, tree) == 0
    lines = tiny.json_lines(tmp_path / "output" / "metrics.jsonl")
    assert {line["dataset"] for line in lines if line.get("split") == "train"} == {"mixed"}
    entries = tiny.json_lines(tmp_path / "output" / "ledger.jsonl")
    assert entries and {entry["dataset"] for entry in entries} == {"images"}
    written = yaml.safe_load((tmp_path / "output" / "config.yaml").read_text())
    assert written["mixture"] == {"mode": "mixed", "batch_size": 6}
