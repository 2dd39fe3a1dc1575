"""The orders in which samples come: pure functions of seed, name and position, looked up for whole batches."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np


def name_number(name: str) -> int:
    """A dataset's name as a number for seeds."""
    return zlib.crc32(name.encode())


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
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, 1, name_number(self.name), epoch]))
            order = rng.permutation(self.length)
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
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, 4, name_number(self.name), block]))
            which = rng.permutation(np.repeat(np.arange(len(self.counts)), self.counts))
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
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, 2, name_number(self.name), epoch]))
            shards = rng.permutation(len(self.counts))
            self._epoch = (epoch, shards, np.cumsum(self.counts[shards]))
        return self._epoch[1], self._epoch[2]

    def _shuffled(self, epoch: int, window: int) -> np.ndarray:
        if self._window is None or self._window[0] != (epoch, window):
            size = min(self.window, self.total - window * self.window)
            seeds = np.random.SeedSequence([self.seed, 3, name_number(self.name), epoch, window])
            self._window = ((epoch, window), np.random.default_rng(seeds).permutation(size))
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
