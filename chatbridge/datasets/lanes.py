"""Lanes: how data whose position is not a function of the step alone is read, one sample after the other.

Every data-loader worker of every rank has a lane of its own in each such dataset, with its own part of the samples.
A lane's position is a few plain numbers; a batch carries them to the training process, so that what is saved is
what was trained on, not what workers had fetched ahead.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from chatbridge.common.ledger import LedgerEntry
from chatbridge.datasets.builder import MAX_TRIES, TaskDataset, describe, one_sample
from chatbridge.datasets.collate import Example
from chatbridge.datasets.orders import Blend, name_number
from chatbridge.datasets.sharded import ShardDataset
from chatbridge.datasets.shards import Shard
from chatbridge.datasets.tar_streams import ShardLost, samples

State = dict[str, Any]


class Lane(Protocol):
    """An endless sequence of examples with a position."""

    def peek(self) -> tuple[Example, list[LedgerEntry]]:
        """The next example, left where it is."""
        ...

    def pop(self) -> None:
        """Count the example that was peeked at as read."""
        ...

    def state_dict(self) -> State:
        """The position behind what was popped: plain values."""
        ...


def open_lane(dataset: TaskDataset, seed: int, lane: int, lanes: int, state: State | None) -> Lane:
    """The lane of that number among `lanes`, at the position of a state."""
    kind = SequenceLane if dataset.sequential else NumberLane
    return kind(dataset, seed, lane, lanes, state)


def regroup(dataset: TaskDataset, states: dict[int, State], lanes: int) -> State:
    """A state for every lane of another number of lanes, from the `states` of `lanes` earlier ones.

    Samples that have numbers go on at the first one that was not read (a few are read again); shards in sequence
    begin a new epoch.
    """
    if dataset.sequential:
        count = len(dataset.lists)
        epochs = [max((s["lists"][i]["epoch"] for s in states.values()), default=-1) + 1 for i in range(count)]
        return {"position": 0, "lists": [{**ListLane.START, "epoch": epoch} for epoch in epochs]}
    first = {lane: state["base"] + state["position"] * lanes + lane for lane, state in states.items()}
    base = min((s["base"] for s in states.values()), default=0)
    return {"position": 0, "base": min(first.get(lane, base + lane) for lane in range(lanes))}


class NumberLane:
    """Every `lanes`-th sample of a dataset's order."""

    def __init__(self, dataset: TaskDataset, seed: int, lane: int, lanes: int, state: State | None):
        self.dataset, self.lane, self.lanes = dataset, lane, lanes
        self.order = dataset.order(seed)
        self.position, self.base = (state["position"], state["base"]) if state else (0, 0)
        self._held: tuple[Example, list[LedgerEntry]] | None = None

    def peek(self) -> tuple[Example, list[LedgerEntry]]:
        if self._held is None:
            place = self.base + self.position * self.lanes + self.lane
            indices, epochs = self.order.at(np.array([place]))
            self._held = self.dataset.example(int(indices[0]), int(epochs[0]))
        return self._held

    def pop(self) -> None:
        self._held = None
        self.position += 1

    def state_dict(self) -> State:
        return {"position": self.position, "base": self.base}


class SequenceLane:
    """A part of the shards of a dataset that is read in sequence; unusable samples are passed over, and told."""

    def __init__(self, dataset: ShardDataset, seed: int, lane: int, lanes: int, state: State | None):
        self.dataset = dataset
        self.blend = Blend(dataset.weights, seed, dataset.name)
        self._state = state or {"position": 0, "lists": [ListLane.START] * len(dataset.lists)}
        self.position = self._state["position"]
        self.lists = [
            ListLane(dataset, number, seed, lane, lanes, saved) for number, saved in enumerate(self._state["lists"])
        ]
        self._held: tuple[Example, list[LedgerEntry]] | None = None
        self._behind = self._state

    def peek(self) -> tuple[Example, list[LedgerEntry]]:
        if self._held is None:
            self._held = self._next()
            self._behind = {"position": self.position, "lists": [part.state_dict() for part in self.lists]}
        return self._held

    def pop(self) -> None:
        self._held = None
        self._state = self._behind

    def state_dict(self) -> State:
        return self._state

    def _next(self) -> tuple[Example, list[LedgerEntry]]:
        entries: list[LedgerEntry] = []
        dataset, tries = self.dataset, 0
        while tries < MAX_TRIES:
            number = int(self.blend.at(np.array([self.position]))[0][0])
            self.position += 1
            shard, place, sample = self.lists[number].take(entries)
            if sample is None:
                continue  # lost on the way back to it, and told
            rng = random.Random(f"{dataset.parts.seed}/{dataset.name}/{number}/{place}")
            identity = sample["__key__"]
            try:
                with one_sample:
                    record = dataset.parse(shard, sample)
                    identity = record.id
                    example = dataset.draw(record, rng)
            except ValueError as error:
                entries.append(LedgerEntry(dataset.name, *describe(error, identity)))
                tries += 1
                continue
            return example, [replace(e, replaced_by=record.id if e.count else "") for e in entries]
        last = entries[-1]
        raise dataset.hopeless((last.sample_id, last.file, last.reason))


class ListLane:
    """One list's shards as a lane reads them: epoch after epoch, shuffled inside windows of samples.

    The window is the shuffle buffer. Its samples are told by runs ``[unit, first, end, offset]`` of sample numbers,
    from which it is filled again after a restart; `next` is where reading goes on behind it: ``[unit, number,
    offset]``. Offsets are those of the (first) sample's bytes in its tar, 0 where they are not known.
    """

    START: State = {"epoch": 0, "window": -1, "taken": 0, "runs": [], "next": [0, 0, 0]}

    def __init__(self, dataset: ShardDataset, number: int, seed: int, lane: int, lanes: int, state: State):
        self.dataset, self.seed, self.lane, self.lanes = dataset, seed, lane, lanes
        self.shards: list[Shard] = dataset.lists[number]
        self.salt = name_number(f"{dataset.name}/{number}")
        self.parts = -(-lanes // len(self.shards))  # fewer shards than lanes: several lanes share each
        self.epoch, self.window, self.taken = state["epoch"], state["window"], state["taken"]
        self.runs = [[*run, 0][:4] for run in state["runs"]]  # older states have no offsets
        self.next = [*state["next"], 0][:3]
        self._items: list[tuple[int, int, dict | None]] | None = None if self.runs else []
        self._order: np.ndarray = np.arange(0)
        self._reader: Iterator[tuple[int, int, dict]] | None = None
        self._units: tuple[int, list[tuple[int, int]]] = (-1, [])
        self._notes: list[LedgerEntry] = []

    def state_dict(self) -> State:
        done = self._items is not None and self.taken >= len(self._items)
        return {
            "epoch": self.epoch,
            "window": self.window,
            "taken": 0 if done else self.taken,
            "runs": [] if done else [list(run) for run in self.runs],
            "next": list(self.next),
        }

    def take(self, entries: list[LedgerEntry]) -> tuple[Shard, str, dict | None]:
        """The next sample with its shard and a name of its place; None for the sample if it was lost meanwhile."""
        if self._items is None:
            self._refill()
        if self.taken >= len(self._items):
            self._fill()
        slot = self._order[self.taken]
        unit, number, sample = self._items[slot]
        self._items[slot] = (unit, number, None)  # its bytes are not needed any longer
        self.taken += 1
        index = self.units()[unit][0]
        shard = self.shards[index]
        if sample is None:
            self._note(shard, number, "was there before the restart and cannot be read now", 1)
        entries += self._notes
        self._notes.clear()
        return shard, f"{self.epoch}/{index}/{number}", sample

    def units(self) -> list[tuple[int, int]]:
        """This lane's (shard, part of it) of the epoch, in order."""
        if self._units[0] != self.epoch:
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, 5, self.salt, self.epoch]))
            every = [(s, p) for s in rng.permutation(len(self.shards)).tolist() for p in range(self.parts)]
            self._units = (self.epoch, every[self.lane :: self.lanes])
        return self._units[1]

    def _note(self, shard: Shard, number: int, reason: str, count: int) -> None:
        entry = LedgerEntry(self.dataset.name, f"{shard.name}#{number}", shard.url, reason, count=count)
        self._notes.append(entry)

    def _shuffle(self) -> None:
        seeds = [self.seed, 6, self.salt, self.epoch, self.lane, self.lanes, self.window]
        rng = np.random.default_rng(np.random.SeedSequence(seeds))
        size = len(self._items)
        self._order = rng.permutation(size) if self.dataset.config.shuffle else np.arange(size)

    def _fill(self) -> None:
        """Read the next window."""
        self._items, self.runs, self.taken = [], [], 0
        for _ in range(MAX_TRIES):
            if self._reader is None:
                self._reader = self._read()
            for unit, number, sample in self._reader:
                self._items.append((unit, number, sample))
                if self.runs and self.runs[-1][0] == unit:
                    self.runs[-1][2] = number + 1
                else:
                    self.runs.append([unit, number, number + 1, sample["__span__"][0]])
                self.next = [unit, number + 1, sample["__span__"][1]]
                if len(self._items) >= max(1, self.dataset.config.shuffle):
                    break
            if self._items:
                self.window += 1
                self._shuffle()
                return
            self.epoch, self.window, self.next, self._reader = self.epoch + 1, -1, [0, 0, 0], None
        last = f"; the last: {self._notes[-1].file}: {self._notes[-1].reason}" if self._notes else ""
        raise ValueError(f"dataset '{self.dataset.name}': no shard gives a sample in {MAX_TRIES} epochs{last}")

    def _refill(self) -> None:
        """Read the window of a saved state again."""
        self._items = []
        for unit, first, end, offset in self.runs:
            found = {number: sample for _, number, sample in self._one(unit, first, end, offset)}
            part = self.units()[unit][1]
            numbers = [n for n in range(first, end) if n % self.parts == part]
            self._items += [(unit, number, found.get(number)) for number in numbers]
        self._notes = [note for note in self._notes if not note.count]  # what is lost is told when its turn comes
        self._shuffle()

    def _read(self) -> Iterator[tuple[int, int, dict]]:
        """The samples of the epoch from `next` on."""
        unit, start, offset = self.next
        while unit < len(self.units()):
            yield from self._one(unit, start, None, offset)
            unit, start, offset = unit + 1, 0, 0
            self.next = [unit, start, offset]

    def _one(self, unit: int, start: int, end: int | None, offset: int) -> Iterator[tuple[int, int, dict]]:
        """(unit, number, sample) of this lane's part of a unit's shard, numbers from `start` to before `end`."""
        index, part = self.units()[unit]
        shard, config = self.shards[index], self.dataset.config

        def failed(number: int, reason: str) -> None:
            self._note(shard, number, f"opened again after: {reason}", 0)

        try:
            for number, sample in samples(shard, start, config.retries, config.retry_seconds, failed, offset):
                if end is not None and number >= end:
                    return
                if number % self.parts == part:
                    yield unit, number, sample
        except ShardLost as lost:
            known = max(lost.number, end if end is not None else shard.samples or 0)
            count = len(range(lost.number + (part - lost.number) % self.parts, known, self.parts))
            self._note(shard, lost.number, lost.reason, max(1, count))
