"""Which samples every step reads: a pure function of seed and step, the same on every rank and after a restart."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Draw:
    """One sample to read: dataset number, index in it, and how often that dataset was gone through before."""

    dataset: int
    index: int
    epoch: int


@dataclass(frozen=True)
class Stream:
    """One dataset in the mixture: its size in samples, its share, its batch size over all ranks."""

    name: str
    length: int
    weight: float
    batch_size: int


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
        one_hot = self.choices[:, None] == np.arange(len(streams))[None, :]
        self._before = np.cumsum(one_hot, axis=0) - one_hot
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.choices)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[Draw]:
        """This rank's part of a step's batch: a contiguous slice of the global one."""
        number = int(self.choices[step])
        size = self.streams[number].batch_size
        first = int(self._before[step, number]) * size
        share = size // world
        positions = range(first + rank * share, first + (rank + 1) * share)
        return [self._draw(number, position) for position in positions]

    def _draw(self, number: int, position: int) -> Draw:
        length = self.streams[number].length
        epoch = position // length
        cached = self._orders.get(number)
        if cached is None or cached[0] != epoch:
            name_hash = zlib.crc32(self.streams[number].name.encode())
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, 1, name_hash, epoch]))
            cached = self._orders[number] = (epoch, rng.permutation(length))
        return Draw(number, int(cached[1][position % length]), epoch)


class MixtureSampler:
    """A batch sampler for PyTorch's data loader: the draws of the steps from `start` on."""

    def __init__(self, mixture: Mixture, start: int, rank: int, world: int):
        self.mixture, self.start, self.rank, self.world = mixture, start, rank, world

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.start, len(self.mixture)):
            yield self.mixture.batch(step, self.rank, self.world)

    def __len__(self) -> int:
        return len(self.mixture) - self.start
