"""From the mixture to batches: what data-loader workers do, and a position that can be saved and taken up again."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import DataLoader

from chatbridge.common.batch import MultimodalBatch
from chatbridge.common.ledger import LedgerEntry
from chatbridge.datasets.builder import TaskDataset
from chatbridge.datasets.collate import Collator, Example
from chatbridge.datasets.lanes import Lane, open_lane, regroup
from chatbridge.datasets.mixture import Mixture, MixtureSampler, Plan
from chatbridge.datasets.packing import TokenBudget

logger = logging.getLogger("chatbridge")


@dataclass
class Failure:
    """What went wrong in a worker. (An exception raised there would come back as text with a traceback in it.)"""

    error: ValueError
    trace: str


class MixtureReader:
    """Reads and collates whole batches by their plans, in a worker: the dataset that PyTorch's loader is given.

    Args:
        datasets: in the mixture's order; collator: pads, and packs where a dataset's configuration says so.
        seed: of the orders; rank, world: this process among all; workers: per process.

    Raises:
        ValueError: a budget of positions that the ranks cannot share.
    """

    def __init__(
        self, datasets: Sequence[TaskDataset], collator: Collator, seed: int, rank: int, world: int, workers: int
    ):
        self.datasets = list(datasets)
        self.collators = [replace(collator, pack=dataset.config.pack) for dataset in self.datasets]
        self.seed, self.rank, self.world = seed, rank, world
        self.lanes_per_rank = max(1, workers)
        self.positions: dict[str, dict[int, Any]] = {}
        self._lanes: dict[tuple[int, int], Lane] = {}
        for dataset in self.datasets:
            config = dataset.config
            share = None if config.batch_tokens is None else config.batch_tokens // world
            if share is not None and share < (config.pack or 1):
                raise ValueError(
                    f"datasets.{dataset.name}.batch_tokens: {config.batch_tokens} positions shared by {world} "
                    f"processes do not hold one row of {config.pack or 1}"
                )
            dataset.max_positions = config.pack or share

    def __getitems__(self, plan: Plan) -> MultimodalBatch | Failure:
        dataset = self.datasets[plan.dataset]
        try:
            if plan.indices:
                read = [dataset.example(i, e) for i, e in zip(plan.indices, plan.epochs, strict=True)]
                return self._collate(plan, read)
            number = plan.step % self.lanes_per_rank
            lane = self._lane(plan.dataset, number)
            batch = self._collate(plan, self._take(dataset, lane))
            return replace(batch, cursor={"lane": number, "state": lane.state_dict()})
        except ValueError as error:
            return Failure(error, traceback.format_exc())

    def _lane(self, dataset: int, number: int) -> Lane:
        if (dataset, number) not in self._lanes:
            state = self.positions.get(self.datasets[dataset].name, {}).get(number)
            here = self.rank * self.lanes_per_rank + number
            lane = open_lane(self.datasets[dataset], self.seed, here, self.world * self.lanes_per_rank, state)
            self._lanes[dataset, number] = lane
        return self._lanes[dataset, number]

    def _take(self, dataset: TaskDataset, lane: Lane) -> list[tuple[Example, list[LedgerEntry]]]:
        """The next samples of a lane, as many as the dataset's batch may have."""
        config, read = dataset.config, []
        budget = None if config.batch_tokens is None else TokenBudget(config.batch_tokens // self.world, config.pack)
        while budget is not None or len(read) < config.batch_size // self.world:
            item = lane.peek()
            if budget is not None and not budget.add(dataset.size(item[0])):
                break
            lane.pop()
            read.append(item)
        return read

    def _collate(self, plan: Plan, read: Sequence[tuple[Example, list[LedgerEntry]]]) -> MultimodalBatch:
        batch = self.collators[plan.dataset]([example for example, _ in read], self.datasets[plan.dataset].name)
        return replace(batch, ledger=[entry for _, entries in read for entry in entries])


class BatchStream(Iterator[MultimodalBatch]):
    """The batches of one rank, and their position as state: how far they were handed out, not how far workers are.

    Args:
        reader: reads in the workers; mixture: what each step reads; workers: 0 reads in this process; pin: hand out
            page-locked memory.
    """

    def __init__(self, reader: MixtureReader, mixture: Mixture, workers: int, pin: bool):
        self.reader, self.mixture, self.workers, self.pin = reader, mixture, workers, pin
        self.step = 0
        self._positions: dict[str, dict[int, Any]] = {}
        self._batches: Iterator[MultimodalBatch | Failure] | None = None

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> MultimodalBatch:
        if self._batches is None:
            self._batches = iter(self._loader())
        batch = next(self._batches)
        if isinstance(batch, Failure):
            raise batch.error from RuntimeError(f"in a data-loader worker:\n{batch.trace}")
        self.step += 1
        if batch.cursor:
            self._positions.setdefault(batch.dataset, {})[batch.cursor["lane"]] = batch.cursor["state"]
        return batch

    def _loader(self) -> DataLoader:
        reader = self.reader
        reader.positions = {name: dict(lanes) for name, lanes in self._positions.items()}
        return DataLoader(
            reader,
            batch_sampler=MixtureSampler(self.mixture, self.step, reader.rank, reader.world),
            num_workers=self.workers,
            collate_fn=_as_it_is,
            pin_memory=self.pin,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values: the mixture's cursor (batches so far, of each dataset, too), and every lane's position."""
        names = [dataset.name for dataset in self.reader.datasets]
        return {
            "step": self.step,
            "seed": self.mixture.seed,
            "drawn": dict(zip(names, self.mixture.drawn(self.step), strict=True)),
            "sizes": {dataset.name: dataset.length for dataset in self.reader.datasets},
            "workers": self.reader.lanes_per_rank,
            "lanes": {name: dict(lanes) for name, lanes in self._positions.items()},
        }

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on where the ranks' states say; one state for each of the ranks that were.

        With as many ranks and workers as before, what follows is what would have followed. With others, datasets
        read by number and step still go on exactly; for lanes see `lanes.regroup`, and a warning is logged.
        """
        if self._batches is not None:
            raise ValueError("the position must be set before the first batch is read")
        mine = states[min(self.reader.rank, len(states) - 1)]
        self.step = mine["step"]
        for dataset in self.reader.datasets:
            before = mine["sizes"].get(dataset.name, dataset.length)
            if before != dataset.length:
                logger.warning(
                    "dataset '%s' had %s samples when the checkpoint was written and has %s now: "
                    "what follows is not what would have followed", dataset.name, before, dataset.length,
                )  # fmt: skip
        workers = mine["workers"]
        if len(states) == self.reader.world and workers == self.reader.lanes_per_rank:
            self._positions = {name: dict(lanes) for name, lanes in mine["lanes"].items()}
            return
        for dataset in self.reader.datasets:
            old = {
                rank * workers + lane: position
                for rank, state in enumerate(states)
                for lane, position in state["lanes"].get(dataset.name, {}).items()
            }
            if old:
                logger.warning(
                    "dataset '%s' was read by %d x %d lanes (processes x workers), now by %d x %d: %s", dataset.name,
                    len(states), workers, self.reader.world, self.reader.lanes_per_rank,
                    "its shards begin a new epoch" if dataset.sequential else "a few samples are read again",
                )  # fmt: skip
                fresh = regroup(dataset, old, len(states) * workers)
                self._positions[dataset.name] = dict.fromkeys(range(self.reader.lanes_per_rank), fresh)


def _as_it_is(batch: MultimodalBatch | Failure) -> MultimodalBatch | Failure:
    return batch
