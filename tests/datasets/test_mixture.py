"""The mixture: shares, order, ranks, and its being a pure function of seed and step."""

from __future__ import annotations

import json
import math
import random
from collections import Counter

import numpy as np
import pytest

from chatbridge.datasets.mixture import Component, Mixture, SampleMixture, StepMixture
from tests.datasets import tools

COMPONENTS = [Component("a", 10, 3.0, 4), Component("b", 7, 1.0, 2)]


def ids(mixture: Mixture, step: int, rank: int = 0, world: int = 1) -> list[tuple]:
    return [(d.dataset, d.index, d.epoch) for d in mixture.plan(step, rank, world).draws]


def test_every_sample_once_per_epoch_in_a_new_order():
    mixture = StepMixture(COMPONENTS, seed=1, steps=400)
    by_epoch: dict[tuple, list[int]] = {}
    for step in range(400):
        for dataset, index, epoch in ids(mixture, step):
            by_epoch.setdefault((dataset, epoch), []).append(index)
    orders = [order for (dataset, _), order in sorted(by_epoch.items()) if dataset == 0]
    assert all(sorted(order) == list(range(10)) for order in orders[:-1])
    assert orders[0] != orders[1]


def test_shares_follow_the_weights():
    counts = Counter(StepMixture(COMPONENTS, seed=1, steps=4000).choices.tolist())
    assert counts[0] / 4000 == pytest.approx(0.75, abs=0.03)


def test_pure_function_of_seed_and_step():
    long, short = StepMixture(COMPONENTS, seed=5, steps=300), StepMixture(COMPONENTS, seed=5, steps=100)
    backwards = {step: ids(short, step) for step in reversed(range(100))}
    assert all(ids(long, step) == backwards[step] for step in range(100))
    assert any(ids(StepMixture(COMPONENTS, seed=6, steps=100), s) != backwards[s] for s in range(10))


def test_ranks_share_one_dataset_and_split_the_global_batch():
    mixture = StepMixture(COMPONENTS, seed=2, steps=50)
    for step in range(50):
        whole = ids(mixture, step)
        assert whole == ids(mixture, step, 0, 2) + ids(mixture, step, 1, 2)
        assert len({dataset for dataset, _, _ in whole}) == 1


@pytest.mark.parametrize(
    ("mode", "first"),
    [
        ("random", ["b1", "b0", "b4", "b6", "a6", "a9", "a0", "a2", "a8", "a5"]),
        ("round_robin", ["a6", "a9", "a0", "a2", "b1", "b0", "a8", "a5", "a3", "a4"]),
    ],
)
def test_the_order_that_a_seed_means_stays_as_it_is(mode, first):
    """Another order in a newer version would repeat samples of a run that is resumed in it."""
    mixture = StepMixture(COMPONENTS, 5, 20, mode)
    assert [f"{'ab'[d.dataset]}{d.index}" for step in range(5) for d in mixture.plan(step).draws][:10] == first


def test_plans_start_anywhere():
    mixture = StepMixture(COMPONENTS, seed=3, steps=20)
    assert list(mixture.plans(7, 0, 1)) == list(mixture.plans(0, 0, 1))[7:]
    assert len(list(mixture.plans(7, 0, 1))) == 13


def test_round_robin():
    assert StepMixture(COMPONENTS, 0, 5, mode="round_robin").choices.tolist() == [0, 1, 0, 1, 0]


def mixed(seed=1, steps=400, batch_size=6, components=COMPONENTS) -> SampleMixture:
    return SampleMixture(components, seed, steps, batch_size)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few steps, so that tests see many of them."""
    monkeypatch.setattr(SampleMixture, "BLOCK", 50)


def test_mixed_every_sample_once_per_epoch(small_blocks):
    mixture = mixed()
    read = [draw for step in range(400) for draw in ids(mixture, step)]
    for dataset, size in ((0, 10), (1, 7)):
        own = [(index, epoch) for number, index, epoch in read if number == dataset]
        epochs = [own[i : i + size] for i in range(0, len(own) - size + 1, size)]
        assert all(sorted(e) == [(i, number) for i in range(size)] for number, e in enumerate(epochs))
        assert len(epochs) > 50 and [i for i, _ in epochs[0]] != [i for i, _ in epochs[1]]


def test_mixed_samples_are_independent_draws_by_weight():
    """Shares of the samples, of those that follow a sample of the first dataset, and how batches differ."""
    mixture = mixed(steps=8000)
    batches = [[draw[0] for draw in ids(mixture, step)] for step in range(8000)]
    drawn = [number for batch in batches for number in batch]
    assert drawn.count(0) / 48_000 == pytest.approx(0.75, abs=0.01)
    after = [b for a, b in zip(drawn, drawn[1:], strict=False) if a == 0]
    assert after.count(0) / len(after) == pytest.approx(0.75, abs=0.015)
    for count in range(7):  # of the first dataset in a batch: binomial
        chance = math.comb(6, count) * 0.75**count * 0.25 ** (6 - count)
        assert sum(b.count(0) == count for b in batches) / 8000 == pytest.approx(chance, abs=0.02)


def test_mixed_is_a_pure_function_of_seed_and_step(small_blocks):
    long, short = mixed(5, 300), mixed(5, 100)
    backwards = {step: ids(short, step) for step in reversed(range(100))}
    assert all(ids(long, step) == backwards[step] for step in range(100))
    other = mixed(6, 100)
    assert any(ids(other, step) != backwards[step] for step in range(10))


def test_mixed_order_that_a_seed_means_stays_as_it_is():
    mixture = mixed(5)
    first = [f"{'ab'[dataset]}{index}" for step in range(2) for dataset, index, _ in ids(mixture, step)]
    assert first == ["a6", "b1", "a9", "a0", "b0", "a2", "b4", "a8", "b6", "b2", "b3", "b5"]


@pytest.mark.parametrize("world", [2, 3, 6])
def test_mixed_ranks_take_slices_of_one_list(small_blocks, world):
    one, every = mixed(), [mixed() for _ in range(world)]
    for step in range(50):
        assert ids(one, step) == [d for rank in range(world) for d in ids(every[rank], step, rank, world)]


def test_mixed_counts_before_any_step(small_blocks):
    counts, mixture = [0, 0], mixed(steps=60)
    for step in range(61):
        assert mixed(steps=60).drawn(step) == counts
        if step < 60:
            counts = [c + sum(d == i for d, _, _ in ids(mixture, step)) for i, c in enumerate(counts)]


def test_mixed_knows_the_middle_of_a_long_run_without_drawing_its_beginning(monkeypatch):
    blocks = []
    inner = SampleMixture._block
    monkeypatch.setattr(SampleMixture, "_block", lambda self, block: blocks.append(block) or inner(self, block))
    mixture = mixed(steps=200_000, batch_size=256)
    assert sum(mixture.drawn(150_001)) == 150_001 * 256
    assert len(mixture.plan(150_001).draws) == 256 and set(blocks) == {150_001 // 256}
    assert sum(array.nbytes for array in vars(mixture).values() if isinstance(array, np.ndarray)) < 100_000


def test_mixed_never_draws_what_has_no_weight(small_blocks):
    components = [Component("a", 10, 0.1, 1), Component("b", 7, 0.2, 1), Component("none", 5, 0.0, 1)]
    mixture = mixed(components=components)
    assert {d for step in range(400) for d, _, _ in ids(mixture, step)} == {0, 1}


def test_mixed_samples_read_in_sequence_have_no_number():
    components = [COMPONENTS[0], Component("far", None, 1.0, 1, streamed=True)]
    mixture = mixed(components=components)
    read = [draw for step in range(20) for draw in ids(mixture, step)]
    assert {(i, e) for d, i, e in read if d == 1} == {(-1, -1)} and all(i >= 0 for d, i, _ in read if d == 0)


@pytest.mark.parametrize("kind", [StepMixture, mixed])
@pytest.mark.parametrize(
    ("components", "message"),
    [
        ([], "no dataset"),
        ([Component("empty", 0, 1.0, 1)], "'empty' has no samples"),
        ([Component("a", 1, 0.0, 1)], "one at least must be positive"),
    ],
)
def test_refuses_what_cannot_be_drawn_from(kind, components, message):
    with pytest.raises(ValueError, match=message):
        kind(components=components, seed=0, steps=1)


def test_the_choices_that_a_seed_means_stay_as_they_are(tmp_path):
    """They are drawn by seed, dataset, epoch and index, in this order."""
    captions = [f"a red ball {word}" for word in tools.WORDS]
    file = tools.write_folder(tmp_path / "folder", 4)
    file.write_text(json.dumps([entry | {"caption": captions} for entry in json.loads(file.read_text())]))
    dataset = tools.folder_set(tmp_path / "folder")
    for epoch, index in ((0, 1), (1, 0), (1, 3), (3, 1)):
        drawn = dataset.draw(dataset.record(index), random.Random(f"3/folder/{epoch}/{index}"))
        assert dataset.example(index, epoch)[0].tokens == drawn.tokens
