"""Which samples every step reads: a pure function of seed and step, the same on every rank and after a restart.

Nothing here is done sample by sample: a step's positions are looked up as one array.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from chatbridge.datasets.orders import Order, Shuffled


@dataclass(frozen=True)
class Draw:
    """One sample to read: dataset number, index in it, and how often that dataset was gone through before."""

    dataset: int
    index: int
    epoch: int


@dataclass(frozen=True)
class Plan:
    """What one rank reads for one batch: travels to a data-loader worker.

    Attributes:
        step: the batch's number in the run; dataset: the dataset's number.
        indices, epochs: the samples, as in `Draw`. Empty for a dataset that is read in sequence (`Stream.sequential`):
            the worker goes on where its lane stands.
    """

    step: int
    dataset: int
    indices: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stream:
    """One dataset in the mixture.

    Attributes:
        length: its size in samples, None where it is not known; weight: its share of the steps.
        batch_size: samples per batch over all ranks.
        order: how its samples come; None is a permutation per epoch.
        sequential: its samples cannot be told by number: lanes read them one after the other.
    """

    name: str
    length: int | None
    weight: float
    batch_size: int
    order: Order | None = None
    sequential: bool = False


class Mixture:
    """Draws one dataset per step by weight, and its samples without replacement until it is used up.

    Args:
        streams: the datasets.
        seed: of the draws and of every epoch's order.
        steps: how many batches are drawn in all (a longer run has the same beginning).
        mode: "random" by weight, or "round_robin".
    """

    def __init__(self, streams: list[Stream], seed: int, steps: int, mode: str = "random"):
        if not streams:
            raise ValueError("the mixture has no dataset: name at least one under datasets:")
        for stream in streams:
            if stream.length == 0:
                raise ValueError(f"dataset '{stream.name}' has no samples")
        weights = np.array([s.weight for s in streams], dtype=np.float64)
        if (weights < 0).any() or weights.sum() <= 0:
            raise ValueError("datasets: weights must not be negative, and one at least must be positive")
        self.streams = streams
        self.seed = seed
        if mode == "round_robin":
            self.choices = np.arange(steps) % len(streams)
        else:
            edges = np.cumsum(weights / weights.sum())
            edges[-1] = 1.0
            uniform = np.random.default_rng(np.random.SeedSequence([seed, 0])).random(steps)
            self.choices = np.searchsorted(edges, uniform, side="right")
        self._before = np.zeros(steps, np.int64)  # earlier batches of the same dataset
        for number in range(len(streams)):
            own = np.flatnonzero(self.choices == number)
            self._before[own] = np.arange(len(own))
        self._orders = [
            None if s.sequential else s.order if s.order is not None else Shuffled(s.name, s.length, seed)
            for s in streams
        ]

    def __len__(self) -> int:
        return len(self.choices)

    def plan(self, step: int, rank: int = 0, world: int = 1) -> Plan:
        """What a rank reads at a step: a contiguous slice of the global batch."""
        number = int(self.choices[step])
        order = self._orders[number]
        if order is None:
            return Plan(step, number)
        size = self.streams[number].batch_size
        share = size // world
        first = int(self._before[step]) * size + rank * share
        indices, epochs = order.at(np.arange(first, first + share))
        return Plan(step, number, tuple(indices.tolist()), tuple(epochs.tolist()))

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[Draw]:
        """This rank's part of a step's batch, sample by sample."""
        plan = self.plan(step, rank, world)
        return [Draw(plan.dataset, i, e) for i, e in zip(plan.indices, plan.epochs, strict=True)]

    def drawn(self, step: int) -> list[int]:
        """How many batches of each dataset the steps before this one read."""
        return np.bincount(self.choices[:step], minlength=len(self.streams)).tolist()


class MixtureSampler:
    """A batch sampler for PyTorch's data loader: the plans of the steps from `start` on."""

    def __init__(self, mixture: Mixture, start: int, rank: int, world: int):
        self.mixture, self.start, self.rank, self.world = mixture, start, rank, world

    def __iter__(self) -> Iterator[Plan]:
        for step in range(self.start, len(self.mixture)):
            yield self.mixture.plan(step, self.rank, self.world)

    def __len__(self) -> int:
        return len(self.mixture) - self.start
