"""Which samples every step reads: a pure function of seed and step, the same on every rank and after a restart.

Nothing here is done sample by sample: a step's positions are looked up as one array.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from chatbridge.datasets.orders import Order, Shuffled, equals_before


@dataclass(frozen=True)
class Draw:
    """One sample to read: dataset number, index in it, and how often that dataset was gone through before."""

    dataset: int
    index: int
    epoch: int


@dataclass(frozen=True)
class Plan:
    """What one rank reads for a batch of one dataset: travels to a data-loader worker.

    Attributes:
        step: the batch's number in the run; dataset: the dataset's number.
        indices, epochs: the samples, as in `Draw`. Empty for a dataset that is read in sequence (`Stream.sequential`):
            the worker goes on where its lane stands.
    """

    step: int
    dataset: int
    indices: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()

    @property
    def draws(self) -> list[Draw]:
        return [Draw(self.dataset, i, e) for i, e in zip(self.indices, self.epochs, strict=True)]


@dataclass(frozen=True)
class MixedPlan:
    """What one rank reads for a batch of several datasets.

    Attributes:
        step: the batch's number in the run.
        datasets: the dataset of every sample.
        indices, epochs: the samples, as in `Draw`; -1 for those of a dataset that is read in sequence: the worker
            takes the next one of its lane.
    """

    step: int
    datasets: tuple[int, ...]
    indices: tuple[int, ...]
    epochs: tuple[int, ...]

    @property
    def draws(self) -> list[Draw]:
        return [Draw(*one) for one in zip(self.datasets, self.indices, self.epochs, strict=True)]


@dataclass(frozen=True)
class Stream:
    """One dataset in the mixture.

    Attributes:
        length: its size in samples, None where it is not known; weight: its share of the steps, or of the samples.
        batch_size: samples per batch over all ranks, where a batch is of one dataset.
        order: how its samples come; None is a permutation per epoch.
        sequential: its samples cannot be told by number: lanes read them one after the other.
    """

    name: str
    length: int | None
    weight: float
    batch_size: int
    order: Order | None = None
    sequential: bool = False


class Mixture(ABC):
    """What the batches of a run hold. Samples of a dataset are drawn without replacement until it is used up.

    Args:
        streams: the datasets.
        seed: of the draws and of every epoch's order.
        steps: how many batches are drawn in all (a longer run has the same beginning).

    Raises:
        ValueError: no dataset, an empty one, or weights that share nothing out.
    """

    def __init__(self, streams: list[Stream], seed: int, steps: int):
        if not streams:
            raise ValueError("the mixture has no dataset: name at least one under datasets:")
        for stream in streams:
            if stream.length == 0:
                raise ValueError(f"dataset '{stream.name}' has no samples")
        weights = np.array([s.weight for s in streams], dtype=np.float64)
        if (weights < 0).any() or weights.sum() <= 0:
            raise ValueError("datasets: weights must not be negative, and one at least must be positive")
        self.streams, self.seed, self.steps = streams, seed, steps
        self.shares = weights / weights.sum()
        self._orders = [
            None if s.sequential else s.order if s.order is not None else Shuffled(s.name, s.length, seed)
            for s in streams
        ]

    def __len__(self) -> int:
        return self.steps

    @abstractmethod
    def plan(self, step: int, rank: int = 0, world: int = 1) -> Plan | MixedPlan:
        """What a rank reads at a step: a contiguous slice of the global batch."""

    @abstractmethod
    def drawn(self, step: int) -> list[int]:
        """What the steps before this one read of each dataset."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[Draw]:
        """This rank's part of a step's batch, sample by sample."""
        return self.plan(step, rank, world).draws


class StepMixture(Mixture):
    """Draws one dataset per step. `drawn` counts batches.

    Args:
        mode: "random" by weight, or "round_robin".
    """

    def __init__(self, streams: list[Stream], seed: int, steps: int, mode: str = "random"):
        super().__init__(streams, seed, steps)
        if mode == "round_robin":
            self.choices = np.arange(steps) % len(streams)
        else:
            edges = np.cumsum(self.shares)
            edges[-1] = 1.0
            uniform = np.random.default_rng(np.random.SeedSequence([seed, 0])).random(steps)
            self.choices = np.searchsorted(edges, uniform, side="right")
        self._before = equals_before(self.choices)

    def plan(self, step: int, rank: int = 0, world: int = 1) -> Plan:
        number = int(self.choices[step])
        order = self._orders[number]
        if order is None:
            return Plan(step, number)
        size = self.streams[number].batch_size
        share = size // world
        first = int(self._before[step]) * size + rank * share
        indices, epochs = order.at(np.arange(first, first + share))
        return Plan(step, number, tuple(indices.tolist()), tuple(epochs.tolist()))

    def drawn(self, step: int) -> list[int]:
        return np.bincount(self.choices[:step], minlength=len(self.streams)).tolist()


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

    def __init__(self, streams: list[Stream], seed: int, steps: int, batch_size: int):
        super().__init__(streams, seed, steps)
        self.batch_size = batch_size
        self._block_steps = max(1, self.BLOCK // batch_size)
        rng = np.random.default_rng(np.random.SeedSequence([seed, 7]))
        # Of weights that are 0 nothing may be drawn, but the last one would take what rounding leaves over.
        some = np.flatnonzero(self.shares)
        self._counts = np.zeros((-(-steps // self._block_steps), len(streams)), np.int64)
        self._counts[:, some] = rng.multinomial(
            self._block_steps * batch_size, self.shares[some], size=len(self._counts)
        )
        self._before = np.cumsum(self._counts, axis=0) - self._counts
        self._cached: tuple[int, np.ndarray, np.ndarray] | None = None

    def plan(self, step: int, rank: int = 0, world: int = 1) -> MixedPlan:
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
        return MixedPlan(step, tuple(datasets.tolist()), tuple(indices.tolist()), tuple(epochs.tolist()))

    def drawn(self, step: int) -> list[int]:
        block, inside = divmod(step, self._block_steps)
        if inside == 0:
            return self._counts[:block].sum(0).tolist()
        datasets, _ = self._block(block)
        here = np.bincount(datasets[: inside * self.batch_size], minlength=len(self.streams))
        return (self._before[block] + here).tolist()

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(dataset, position in the dataset's endless sequence) of the block's samples, step after step."""
        if self._cached is None or self._cached[0] != block:
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, 8, block]))
            datasets = rng.permutation(np.repeat(np.arange(len(self.streams)), self._counts[block]))
            self._cached = (block, datasets, self._before[block][datasets] + equals_before(datasets))
        return self._cached[1], self._cached[2]


class MixtureSampler:
    """A batch sampler for PyTorch's data loader: the plans of the steps from `start` on."""

    def __init__(self, mixture: Mixture, start: int, rank: int, world: int):
        self.mixture, self.start, self.rank, self.world = mixture, start, rank, world

    def __iter__(self) -> Iterator[Plan | MixedPlan]:
        for step in range(self.start, len(self.mixture)):
            yield self.mixture.plan(step, self.rank, self.world)

    def __len__(self) -> int:
        return len(self.mixture) - self.start
