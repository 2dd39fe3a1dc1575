"""Which samples every step reads: a pure function of seed and step, the same on every rank and after a restart.

Nothing here is done sample by sample: a step's positions are looked up as one array.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from chatbridge.datasets.orders import Order, Shuffled, equals_before


class Draw(NamedTuple):
    """One sample to read: dataset number, index in it, and how often that dataset was gone through before.

    Index and epoch are -1 for a dataset that is read as a stream: the worker takes the next sample of its own.
    """

    dataset: int
    index: int
    epoch: int


@dataclass(frozen=True)
class BatchPlan:
    """What one rank reads for a batch: travels to a data-loader worker.

    Attributes:
        step: the batch's number in the run.
        dataset: the number of the dataset that all samples are from; None where each has its own.
        draws: the samples; empty where a stream's next ones make up the batch.
    """

    step: int
    dataset: int | None
    draws: tuple[Draw, ...] = ()


@dataclass(frozen=True)
class Component:
    """One dataset of the mixture.

    Attributes:
        length: its size in samples, None where it is not known; weight: its share of the steps, or of the samples.
        batch_size: samples per batch over all ranks, where a batch is of one dataset.
        order: how its samples come; None is a permutation per epoch.
        streamed: workers read its samples one after the other, each from a stream of its own (`SampleStream`).
    """

    name: str
    length: int | None
    weight: float
    batch_size: int
    order: Order | None = None
    streamed: bool = False


class Mixture(ABC):
    """What the batches of a run hold. Samples of a dataset are drawn without replacement until it is used up.

    Args:
        components: the datasets.
        seed: of the draws and of every epoch's order.
        steps: how many batches are drawn in all (a longer run has the same beginning).

    Raises:
        ValueError: no dataset, an empty one, or weights that share nothing out.
    """

    def __init__(self, components: list[Component], seed: int, steps: int):
        if not components:
            raise ValueError("the mixture has no dataset: name at least one under datasets:")
        for component in components:
            if component.length == 0:
                raise ValueError(f"dataset '{component.name}' has no samples")
        weights = np.array([c.weight for c in components], dtype=np.float64)
        if (weights < 0).any() or weights.sum() <= 0:
            raise ValueError("datasets: weights must not be negative, and one at least must be positive")
        self.components, self.seed, self.steps = components, seed, steps
        self.shares = weights / weights.sum()
        self._orders = [
            None if c.streamed else c.order if c.order is not None else Shuffled(c.name, c.length, seed)
            for c in components
        ]

    def __len__(self) -> int:
        return self.steps

    @abstractmethod
    def plan(self, step: int, rank: int = 0, world: int = 1) -> BatchPlan:
        """What a rank reads at a step: a contiguous slice of the global batch."""

    @abstractmethod
    def drawn(self, step: int) -> list[int]:
        """What the steps before this one read of each dataset."""

    def plans(self, start: int, rank: int, world: int) -> Iterator[BatchPlan]:
        """Those of the steps from `start` on: a sampler for PyTorch's data loader."""
        return (self.plan(step, rank, world) for step in range(start, len(self)))


class StepMixture(Mixture):
    """Draws one dataset per step. `drawn` counts batches.

    Args:
        mode: "random" by weight, or "round_robin".
    """

    def __init__(self, components: list[Component], seed: int, steps: int, mode: str = "random"):
        super().__init__(components, seed, steps)
        if mode == "round_robin":
            self.choices = np.arange(steps) % len(components)
        else:
            edges = np.cumsum(self.shares)
            edges[-1] = 1.0
            uniform = np.random.default_rng(np.random.SeedSequence([seed, 0])).random(steps)
            self.choices = np.searchsorted(edges, uniform, side="right")
        self._before = equals_before(self.choices)

    def plan(self, step: int, rank: int = 0, world: int = 1) -> BatchPlan:
        number = int(self.choices[step])
        order = self._orders[number]
        if order is None:
            return BatchPlan(step, number)
        size = self.components[number].batch_size
        share = size // world
        first = int(self._before[step]) * size + rank * share
        indices, epochs = order.at(np.arange(first, first + share))
        return BatchPlan(step, number, _draws(np.full_like(indices, number), indices, epochs))

    def drawn(self, step: int) -> list[int]:
        return np.bincount(self.choices[:step], minlength=len(self.components)).tolist()


class SampleMixture(Mixture):
    """Draws the dataset of every sample by weight. `drawn` counts samples.

    What is kept of a run of any length is how many samples of each dataset every block of steps has, a multinomial
    draw; the samples of a block, a shuffled list with these counts, are drawn when one of its steps is asked for.
    Together that is the distribution of independent draws.

    Args:
        batch_size: samples of a step over all ranks.
    """

    BLOCK = 2**16
    """Samples of a block, about: drawn within a few milliseconds, and few enough blocks for any run."""

    def __init__(self, components: list[Component], seed: int, steps: int, batch_size: int):
        super().__init__(components, seed, steps)
        self.batch_size = batch_size
        self._block_steps = max(1, self.BLOCK // batch_size)
        rng = np.random.default_rng(np.random.SeedSequence([seed, 7]))
        # Of weights that are 0 nothing may be drawn, but the last one would take what rounding leaves over.
        some = np.flatnonzero(self.shares)
        self._counts = np.zeros((-(-steps // self._block_steps), len(components)), np.int64)
        self._counts[:, some] = rng.multinomial(
            self._block_steps * batch_size, self.shares[some], size=len(self._counts)
        )
        self._before = np.cumsum(self._counts, axis=0) - self._counts
        self._cached: tuple[int, np.ndarray, np.ndarray] | None = None

    def plan(self, step: int, rank: int = 0, world: int = 1) -> BatchPlan:
        block, inside = divmod(step, self._block_steps)
        datasets, positions = self._block(block)
        share = self.batch_size // world
        first = inside * self.batch_size + rank * share
        datasets, positions = datasets[first : first + share], positions[first : first + share]
        indices, epochs = np.full_like(positions, -1), np.full_like(positions, -1)
        for number in np.unique(datasets).tolist():
            order = self._orders[number]
            if order is not None:
                here = datasets == number
                indices[here], epochs[here] = order.at(positions[here])
        return BatchPlan(step, None, _draws(datasets, indices, epochs))

    def drawn(self, step: int) -> list[int]:
        block, inside = divmod(step, self._block_steps)
        if inside == 0:
            return self._counts[:block].sum(0).tolist()
        datasets, _ = self._block(block)
        here = np.bincount(datasets[: inside * self.batch_size], minlength=len(self.components))
        return (self._before[block] + here).tolist()

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(dataset, position in the dataset's endless sequence) of the block's samples, step after step."""
        if self._cached is None or self._cached[0] != block:
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, 8, block]))
            datasets = rng.permutation(np.repeat(np.arange(len(self.components)), self._counts[block]))
            self._cached = (block, datasets, self._before[block][datasets] + equals_before(datasets))
        return self._cached[1], self._cached[2]


def _draws(datasets: np.ndarray, indices: np.ndarray, epochs: np.ndarray) -> tuple[Draw, ...]:
    return tuple(map(Draw, datasets.tolist(), indices.tolist(), epochs.tolist()))
