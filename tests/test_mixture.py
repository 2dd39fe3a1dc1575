"""The mixture: shares, order, ranks, and its being a pure function of seed and step."""

from __future__ import annotations

from collections import Counter

import pytest

from chatbridge.datasets.mixture import Mixture, MixtureSampler, Stream

STREAMS = [Stream("a", 10, 3.0, 4), Stream("b", 7, 1.0, 2)]


def ids(mixture: Mixture, step: int, rank: int = 0, world: int = 1) -> list[tuple]:
    return [(d.dataset, d.index, d.epoch) for d in mixture.batch(step, rank, world)]


def test_every_sample_once_per_epoch_in_a_new_order():
    mixture = Mixture(STREAMS, seed=1, steps=400)
    by_epoch: dict[tuple, list[int]] = {}
    for step in range(400):
        for dataset, index, epoch in ids(mixture, step):
            by_epoch.setdefault((dataset, epoch), []).append(index)
    orders = [order for (dataset, _), order in sorted(by_epoch.items()) if dataset == 0]
    assert all(sorted(order) == list(range(10)) for order in orders[:-1])
    assert orders[0] != orders[1]


def test_shares_follow_the_weights():
    counts = Counter(Mixture(STREAMS, seed=1, steps=4000).choices.tolist())
    assert counts[0] / 4000 == pytest.approx(0.75, abs=0.03)


def test_pure_function_of_seed_and_step():
    long, short = Mixture(STREAMS, seed=5, steps=300), Mixture(STREAMS, seed=5, steps=100)
    backwards = {step: ids(short, step) for step in reversed(range(100))}
    assert all(ids(long, step) == backwards[step] for step in range(100))
    assert any(ids(Mixture(STREAMS, seed=6, steps=100), s) != backwards[s] for s in range(10))


def test_ranks_share_one_dataset_and_split_the_global_batch():
    mixture = Mixture(STREAMS, seed=2, steps=50)
    for step in range(50):
        whole = ids(mixture, step)
        assert whole == ids(mixture, step, 0, 2) + ids(mixture, step, 1, 2)
        assert len({dataset for dataset, _, _ in whole}) == 1


def test_sampler_starts_anywhere():
    mixture = Mixture(STREAMS, seed=3, steps=20)
    assert list(MixtureSampler(mixture, 7, 0, 1)) == list(MixtureSampler(mixture, 0, 0, 1))[7:]
    assert len(MixtureSampler(mixture, 7, 0, 1)) == 13


def test_round_robin():
    assert Mixture(STREAMS, 0, 5, mode="round_robin").choices.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ([], "no dataset"),
        ([Stream("empty", 0, 1.0, 1)], "'empty' has no samples"),
        ([Stream("a", 1, 0.0, 1)], "one at least must be positive"),
    ],
)
def test_refuses_what_cannot_be_drawn_from(streams, message):
    with pytest.raises(ValueError, match=message):
        Mixture(streams, 0, 1)
