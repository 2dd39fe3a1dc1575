"""Held-out samples in order, in batches; unreadable ones are left out, counted and logged."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

from chatbridge.common.batch import MultimodalBatch
from chatbridge.datasets.base import TaskDataset
from chatbridge.datasets.collate import Collator, Example

logger = logging.getLogger("chatbridge")


class HeldOut:
    """One rank's share of a validation set.

    All ranks get equally many batches, so that none waits for another in a sharded model: those of ranks that have
    nothing (more) to read are filled up with a sample that does not count.

    Args:
        collator: pads; batches: at most; None takes all.

    Attributes:
        unreadable: samples of this share that could not be read when it was last gone through.
        empty: whether not one sample of the whole set can be: then it has no batches, on any rank.
    """

    def __init__(self, dataset: TaskDataset, collator: Collator, rank: int, world: int, batches: int | None):
        self.dataset, self.collator = dataset, collator
        self.size = max(1, dataset.config.batch_size // world)
        self.mine = list(range(len(dataset)))[rank::world]
        self.starts = range(0, -(-len(dataset) // world), self.size)[:batches]
        self.unreadable = 0
        self.empty = False
        self._filler: Example | None = None
        self._logged: set[int] = set()

    def __iter__(self) -> Iterator[tuple[MultimodalBatch, bool]]:
        """Every batch, and whether it counts."""
        self.unreadable = 0
        for start in self.starts:
            read = [self._read(index) for index in self.mine[start : start + self.size]]
            examples = [example for example in read if example is not None]
            self.unreadable += len(read) - len(examples)
            if not examples:
                self._filler = self._filler or self._first()
                self.empty = self._filler is None
                if self.empty:
                    self.unreadable = len(self.mine)
                    return
            yield self.collator(examples or [self._filler], self.dataset.name), bool(examples)

    def _first(self) -> Example | None:
        """The first sample of the whole set that can be read: the same on all ranks."""
        return next((found for index in range(len(self.dataset)) if (found := self._read(index)) is not None), None)

    def _read(self, index: int) -> Example | None:
        dataset = self.dataset
        read = partial(dataset.read, kind=dataset.kinds[0])
        identity, found = dataset.try_read(f"#{index}", partial(dataset.record, index), read)
        if isinstance(found, Example):
            return found
        if index not in self._logged:
            self._logged.add(index)
            logger.warning(
                "validation.%s: sample %s is left out: %s: %s", dataset.name, identity, found.file, found.reason
            )
        return None
