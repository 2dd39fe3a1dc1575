"""Streams: data whose position is not a function of the step alone, read one sample after the other.

Every data-loader worker of every rank has a stream of its own of each such dataset, over its own part of the samples.
Its state is a few plain numbers, which travel with the batch to the training process: what is saved is what was
trained on, not what workers had fetched ahead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from chatbridge.common.ledger import LedgerEntry
from chatbridge.datasets.base import MAX_TRIES, TaskDataset
from chatbridge.datasets.collate import Example
from chatbridge.datasets.mixture import Blend, generator
from chatbridge.datasets.shard_readers import ShardLost, samples_in_sequence
from chatbridge.datasets.shards import Shard
from chatbridge.datasets.webdataset import ShardDataset

State: TypeAlias = "dict[str, Any]"
Read: TypeAlias = "tuple[Example, list[LedgerEntry]]"
"""A sample, and what could not be read on the way to it."""


class SampleStream(ABC):
    """An endless sequence of examples with a state.

    Args:
        worker, workers: this one among those of all ranks; state: where to go on.
    """

    def __init__(self, dataset: TaskDataset, worker: int, workers: int, state: State):
        self.dataset, self.worker, self.workers = dataset, worker, workers
        self._state, self._held = state, None

    def peek(self) -> Read:
        """The next sample, which stays the next one."""
        if self._held is None:
            self._held = self._read(), self._position()
        return self._held[0]

    def next(self) -> Read:
        read = self.peek()
        (_, self._state), self._held = self._held, None
        return read

    def state_dict(self) -> State:
        """The position behind the last sample that `next` gave: plain values."""
        return self._state

    @abstractmethod
    def _read(self) -> Read:
        """Read one sample and move on."""

    @abstractmethod
    def _position(self) -> State:
        """Where it stands."""


class NumberedStream(SampleStream):
    """Every `workers`-th sample of a dataset's order."""

    def __init__(self, dataset: TaskDataset, seed: int, worker: int, workers: int, state: State | None):
        super().__init__(dataset, worker, workers, state or {"position": 0, "base": 0})
        self.order, self.count = dataset.order(seed), self._state["position"]

    def _read(self) -> Read:
        place = self._state["base"] + self.count * self.workers + self.worker
        self.count += 1
        (index,), (epoch,) = self.order.at(np.array([place]))
        return self.dataset.example(int(index), int(epoch))

    def _position(self) -> State:
        return {"position": self.count, "base": self._state["base"]}


class ShardStream(SampleStream):
    """A part of the shards of a dataset, each read from its beginning; unusable samples are reported."""

    def __init__(self, dataset: ShardDataset, seed: int, worker: int, workers: int, state: State | None):
        super().__init__(dataset, worker, workers, state or {"position": 0, "lists": [{}] * len(dataset.lists)})
        self.blend, self.count = Blend(dataset.weights, seed, dataset.name), self._state["position"]
        self.lists = [
            ShardListReader(dataset, number, seed, worker, workers, saved)
            for number, saved in enumerate(self._state["lists"])
        ]

    def _read(self) -> Read:
        entries: list[LedgerEntry] = []
        dataset, tries = self.dataset, 0
        while tries < MAX_TRIES:
            number = int(self.blend.at(np.array([self.count]))[0][0])
            self.count += 1
            shard, place, sample = self.lists[number].take(entries)
            draw = partial(dataset.draw, rng=dataset.rng(number, place))
            identity, found = dataset.try_read(sample["__key__"], partial(dataset.parse, shard, sample), draw)
            if isinstance(found, Example):
                return found, [replace(entry, replaced_by=identity if entry.count else "") for entry in entries]
            entries.append(found)
            tries += 1
        raise dataset.gives_up(entries[-1])

    def _position(self) -> State:
        return {"position": self.count, "lists": [shards.state_dict() for shards in self.lists]}


class ShardListReader:
    """One list's shards as a worker reads them: epoch after epoch, shuffled inside windows of `shuffle` samples.

    The window is the shuffle buffer. After a restart it is read again, from its first sample on: `start` is that one's
    (shard, place in it), shards counted in the order of the worker's epoch; `taken` is how much of it was given out.
    """

    def __init__(self, dataset: ShardDataset, number: int, seed: int, worker: int, workers: int, state: State):
        self.dataset, self.seed, self.worker, self.workers = dataset, seed, worker, workers
        self.shards: list[Shard] = dataset.lists[number]
        self.name = f"{dataset.name}/{number}"
        self.parts = -(-workers // len(self.shards))  # fewer shards than workers: several share each
        if "runs" in state:
            state = _of_earlier_version(state)
        self.epoch, self.window, self.taken = (state.get(name, 0) for name in ("epoch", "window", "taken"))
        self.start = tuple(state.get("start", (0, 0)))
        self._units: list[tuple[int, int]] = []  # (shard, part of it) of the epoch, in order
        self._reader: Iterator[tuple[int, int, dict]] | None = None
        self._window: list[tuple[int, int, dict] | None] | None = None
        self._behind = self.start
        self._notes: list[LedgerEntry] = []

    def state_dict(self) -> State:
        return {"epoch": self.epoch, "window": self.window, "start": list(self.start), "taken": self.taken}

    def take(self, entries: list[LedgerEntry]) -> tuple[Shard, str, dict]:
        """The next sample with its shard and a name of its place; what was lost on the way is put to `entries`."""
        if self._window is None:
            self._fill()
            if self.taken:  # what was lost was reported when the window was read for the first time
                self._notes = [note for note in self._notes if not note.count]
        while self.taken >= len(self._window):
            self.window, self.start, self.taken = self.window + 1, self._behind, 0
            self._fill()
        unit, number, sample = self._window[self.taken]
        self._window[self.taken] = None  # its bytes are not needed any longer
        self.taken += 1
        entries += self._notes
        self._notes.clear()
        index, _ = self._units[unit]
        return self.shards[index], f"{self.epoch}/{index}/{number}", sample

    def _fill(self) -> None:
        """Read the window that begins at `start`, or else the first one of a later epoch."""
        for _ in range(MAX_TRIES):
            if self._reader is None:
                self._units, self._reader = self._shuffled_shards(), self._read()
            if found := list(islice(self._reader, max(1, self.dataset.config.shuffle))):
                self._behind = found[-1][0], found[-1][1] + 1
                self._window = [found[place] for place in self._shuffled_places(len(found))]
                return
            self.epoch, self.window, self.start, self.taken, self._reader = self.epoch + 1, 0, (0, 0), 0, None
        last = f"; the last: {self._notes[-1].file}: {self._notes[-1].reason}" if self._notes else ""
        raise ValueError(f"dataset '{self.dataset.name}': no shard gives a sample in {MAX_TRIES} epochs{last}")

    def _shuffled_shards(self) -> list[tuple[int, int]]:
        order = generator(self.seed, 5, self.name, self.epoch).permutation(len(self.shards)).tolist()
        every = [(shard, part) for shard in order for part in range(self.parts)]
        return every[self.worker :: self.workers]

    def _shuffled_places(self, size: int) -> list[int]:
        if not self.dataset.config.shuffle:
            return list(range(size))
        seeds = self.seed, 6, self.name, self.epoch, self.worker, self.workers, self.window
        return generator(*seeds).permutation(size).tolist()

    def _read(self) -> Iterator[tuple[int, int, dict]]:
        """(unit, number, sample) of the epoch from `start` on; a unit is a shard, or a part of one."""
        (first, start), config = self.start, self.dataset.config
        for unit, (index, part) in enumerate(self._units[first:], first):
            shard, begin = self.shards[index], start if unit == first else 0
            failed = partial(self._note, shard, count=0, prefix="opened again after: ")
            try:
                for number, sample in samples_in_sequence(shard, begin, config.retries, config.retry_seconds, failed):
                    if number % self.parts == part:
                        yield unit, number, sample
            except ShardLost as lost:
                known = max(lost.number, shard.samples or 0)
                count = len(range(lost.number + (part - lost.number) % self.parts, known, self.parts))
                self._note(shard, lost.number, lost.reason, max(1, count))

    def _note(self, shard: Shard, number: int, reason: str, count: int, prefix: str = "") -> None:
        entry = LedgerEntry(self.dataset.name, f"{shard.name}#{number}", shard.url, prefix + reason, count=count)
        self._notes.append(entry)


def stream_of(dataset: TaskDataset, seed: int, worker: int, workers: int, state: State | None) -> SampleStream:
    """The stream that suits a dataset; arguments as of `SampleStream`, `state` None to begin."""
    kind = ShardStream if dataset.sequential else NumberedStream
    return kind(dataset, seed, worker, workers, state)


def _of_earlier_version(state: State) -> State:
    """A state of `ShardListReader` in checkpoints that list the samples of the window."""
    if state["runs"]:
        return {**state, "start": state["runs"][0][:2]}
    return {"epoch": state["epoch"], "window": state["window"] + 1, "start": state["next"][:2]}


def restarted(dataset: TaskDataset, states: dict[int, State], workers: int) -> State:
    """A state for every stream of another number of workers, from the `states` of `workers` earlier ones.

    Samples that have numbers go on at the first one that was not read (a few are read again); shards in sequence
    begin a new epoch.
    """
    if dataset.sequential:
        lists = zip(*(state["lists"] for state in states.values()), strict=True)
        epochs = [max(part.get("epoch", 0) for part in parts) + 1 for parts in lists]
        return {"position": 0, "lists": [{"epoch": epoch} for epoch in epochs]}
    first = {worker: state["base"] + state["position"] * workers + worker for worker, state in states.items()}
    base = min((s["base"] for s in states.values()), default=0)
    return {"position": 0, "base": min(first.get(worker, base + worker) for worker in range(workers))}
