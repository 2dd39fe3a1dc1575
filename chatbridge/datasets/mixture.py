"""Which samples every step reads: a pure function of seed and step, the same on every rank and after a restart.

First the orders of single datasets, then their mixture. Nothing is done sample by sample: positions are looked up as
arrays.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


def generator(*seeds: int | str) -> np.random.Generator:
    """A random generator that numbers and names decide."""
    numbers = [zlib.crc32(seed.encode()) if isinstance(seed, str) else seed for seed in seeds]
    return np.random.default_rng(np.random.SeedSequence(numbers))


def equals_before(values: np.ndarray) -> np.ndarray:
    """How many earlier elements equal each one: [3, 5, 3] -> [0, 0, 1]."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    counts = np.empty(len(values), np.int64)
    counts[order] = np.arange(len(values)) - np.searchsorted(ordered, ordered)
    return counts


class Order(Protocol):
    """The order in which a dataset's samples come, epoch after epoch."""

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(indices, epochs) of the samples at ascending positions 0, 1, 2, ... of an endless sequence."""
        ...


class Shuffled:
    """A new permutation of all samples in every epoch."""

    def __init__(self, name: str, length: int, seed: int):
        self.name, self.length, self.seed = name, length, seed
        self._cached: tuple[int, np.ndarray] | None = None

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        epochs, places = np.divmod(positions, self.length)
        indices = np.empty_like(places)
        first, last = int(epochs[0]), int(epochs[-1])
        for epoch in range(first, last + 1):
            here = slice(*np.searchsorted(epochs, [epoch, epoch + 1])) if last > first else slice(None)
            indices[here] = self._permutation(epoch)[places[here]]
        return indices, epochs

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._cached is None or self._cached[0] != epoch:
            order = generator(self.seed, 1, self.name, epoch).permutation(self.length)
            # Hundreds of millions of samples make this the largest array of the process.
            self._cached = (epoch, order.astype(np.uint32) if self.length < 2**32 else order)
        return self._cached[1]


class Blend:
    """Shares a sequence among several lists by weight: every block of positions has each list's share of it.

    Args:
        weights: of the lists; seed, name: of the order inside a block.
    """

    BLOCK = 1000

    def __init__(self, weights: Sequence[float], seed: int, name: str):
        shares = np.asarray(weights, np.float64)
        if len(shares) == 0 or (shares < 0).any() or shares.sum() <= 0:
            raise ValueError(f"dataset '{name}': weights must not be negative, and one at least must be positive")
        exact = shares / shares.sum() * self.BLOCK
        self.counts = np.floor(exact).astype(np.int64)
        rest = np.argsort(self.counts - exact, kind="stable")[: self.BLOCK - self.counts.sum()]
        self.counts[rest] += 1  # largest remainders first
        self.seed, self.name = seed, name
        self._cached: tuple[int, np.ndarray, np.ndarray] | None = None

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(number of the list, position in that list) at every position."""
        if len(self.counts) == 1:
            return np.zeros_like(positions), positions
        blocks, places = np.divmod(positions, self.BLOCK)
        lists, inner = np.empty_like(places), np.empty_like(places)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            which, ranks = self._block(block)
            lists[here] = which[places[here]]
            inner[here] = block * self.counts[lists[here]] + ranks[places[here]]
        return lists, inner

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        if self._cached is None or self._cached[0] != block:
            numbers = np.repeat(np.arange(len(self.counts)), self.counts)
            which = generator(self.seed, 4, self.name, block).permutation(numbers)
            self._cached = (block, which, equals_before(which))
        return self._cached[1], self._cached[2]


class ShardOrder:
    """The order of one list of local shards: shards permuted per epoch, their samples shuffled in windows.

    A pure function of seed, name and position: no buffer is held, for any sample can be read at any time.
    """

    def __init__(self, name: str, counts: Sequence[int], window: int, seed: int):
        self.name, self.window, self.seed = name, max(1, window), seed
        self.counts = np.asarray(counts, np.int64)
        self.firsts = np.cumsum(self.counts) - self.counts
        self.total = int(self.counts.sum())
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None
        self._window: tuple[tuple[int, int], np.ndarray] | None = None

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        epochs, places = np.divmod(positions, self.total)
        indices = np.empty_like(places)
        windows = places // self.window
        for epoch, window in sorted(set(zip(epochs.tolist(), windows.tolist(), strict=True))):
            here = (epochs == epoch) & (windows == window)
            first = window * self.window
            sequence = first + self._shuffled(epoch, window)[places[here] - first]
            shards, ends = self._shards(epoch)
            slots = np.searchsorted(ends, sequence, side="right")
            chosen = shards[slots]
            indices[here] = self.firsts[chosen] + sequence - (ends[slots] - self.counts[chosen])
        return indices, epochs

    def _shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if self._epoch is None or self._epoch[0] != epoch:
            shards = generator(self.seed, 2, self.name, epoch).permutation(len(self.counts))
            self._epoch = (epoch, shards, np.cumsum(self.counts[shards]))
        return self._epoch[1], self._epoch[2]

    def _shuffled(self, epoch: int, window: int) -> np.ndarray:
        if self._window is None or self._window[0] != (epoch, window):
            size = min(self.window, self.total - window * self.window)
            places = generator(self.seed, 3, self.name, epoch, window).permutation(size)
            self._window = ((epoch, window), places)
        return self._window[1]


class BlendedOrder:
    """Several lists' orders as one, each list with its share of the positions."""

    def __init__(self, blend: Blend, orders: Sequence[ShardOrder], firsts: Sequence[int]):
        self.blend, self.orders, self.firsts = blend, list(orders), list(firsts)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lists, inner = self.blend.at(positions)
        indices, epochs = np.empty_like(inner), np.empty_like(inner)
        for number in np.unique(lists).tolist():
            here = lists == number
            found, epochs[here] = self.orders[number].at(inner[here])
            indices[here] = self.firsts[number] + found
        return indices, epochs


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
            self.choices = np.searchsorted(edges, generator(seed, 0).random(steps), side="right")
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
        # Of weights that are 0 nothing may be drawn, but the last one would take what rounding leaves over.
        some = np.flatnonzero(self.shares)
        self._counts = np.zeros((-(-steps // self._block_steps), len(components)), np.int64)
        size = self._block_steps * batch_size
        self._counts[:, some] = generator(seed, 7).multinomial(size, self.shares[some], size=len(self._counts))
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
            numbers = np.repeat(np.arange(len(self.components)), self._counts[block])
            datasets = generator(self.seed, 8, block).permutation(numbers)
            self._cached = (block, datasets, self._before[block][datasets] + equals_before(datasets))
        return self._cached[1], self._cached[2]


def _draws(datasets: np.ndarray, indices: np.ndarray, epochs: np.ndarray) -> tuple[Draw, ...]:
    return tuple(map(Draw, datasets.tolist(), indices.tolist(), epochs.tolist()))
