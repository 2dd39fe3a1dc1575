"""From the mixture to batches: what data-loader workers do, and a position that can be saved and taken up again."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import traceback
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import Lock, active_children
from multiprocessing.process import BaseProcess
from typing import Any, TypeAlias

import torch
from torch.utils.data import DataLoader, get_worker_info

from chatbridge.common.batch import MIXED, MultimodalBatch
from chatbridge.common.ledger import LedgerEntry
from chatbridge.common.shared import DEV_SHM, SHM_SIZE, Rows, forget, keep_freed
from chatbridge.datasets.builder import Begun, TaskDataset
from chatbridge.datasets.collate import Collator, Example
from chatbridge.datasets.lanes import Lane, open_lane, regroup
from chatbridge.datasets.mixture import MixedPlan, Mixture, MixtureSampler, Plan
from chatbridge.datasets.packing import TokenBudget

logger = logging.getLogger("chatbridge")


@dataclass
class Failure:
    """What went wrong in a worker. (An exception raised there would come back as text with a traceback in it.)"""

    error: ValueError | OSError
    trace: str


def check_shapes(datasets: Iterable[TaskDataset]) -> None:
    """Raise ValueError for datasets whose samples share batches, but whose media of a modality differ in shape."""
    first: dict[str, tuple[str, tuple[int, ...]]] = {}
    for dataset in datasets:
        for modality in sorted({m for kind in dataset.kinds for m in kind.modalities}):
            shape = tuple(dataset.processors[modality].shape)
            other, expected = first.setdefault(modality, (dataset.name, shape))
            if shape != expected:
                raise ValueError(
                    f"mixture.mode: mixed puts samples of '{other}' and '{dataset.name}' into one batch, but their "
                    f"'{modality}' has the shapes {expected} and {shape}; give both the same processor settings "
                    f"(datasets.{dataset.name}.processors.{modality}), or take mixture.mode: random"
                )


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
        self.collator = collator
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

    def __getitems__(self, plan: Plan | MixedPlan) -> MultimodalBatch | Failure:
        try:
            # What a worker does is never differentiated; told so, PyTorch's many small calls are quicker.
            with torch.inference_mode(get_worker_info() is not None):
                return self._mixed(plan) if isinstance(plan, MixedPlan) else self._of_one_dataset(plan)
        except (ValueError, OSError) as error:
            return Failure(error, traceback.format_exc())
        except MemoryError:
            return Failure(ValueError("a batch does not fit into memory; take smaller ones"), traceback.format_exc())

    def _of_one_dataset(self, plan: Plan) -> MultimodalBatch:
        dataset, collator = self.datasets[plan.dataset], self.collators[plan.dataset]
        if plan.indices:
            begun = [dataset.begin(draw.index, draw.epoch) for draw in plan.draws]
            rows = _rows_for(begun)
            return _collate(collator, [_moved(dataset.finish(one), rows) for one in begun], dataset.name)
        number = plan.step % self.lanes_per_rank
        lane = self._lane(plan.dataset, number)
        batch = _collate(collator, self._take(dataset, lane), dataset.name)
        return replace(batch, cursor={dataset.name: {number: lane.state_dict()}})

    def _mixed(self, plan: MixedPlan) -> MultimodalBatch:
        number, read, lanes, draws = plan.step % self.lanes_per_rank, [], {}, plan.draws
        begun = {
            place: self.datasets[draw.dataset].begin(draw.index, draw.epoch)
            for place, draw in enumerate(draws)
            if draw.index >= 0
        }
        rows = _rows_for(begun.values())
        for place, draw in enumerate(draws):
            dataset = self.datasets[draw.dataset]
            if place in begun:
                read.append(_moved(dataset.finish(begun[place]), rows))
                continue
            lane = lanes[dataset.name] = self._lane(draw.dataset, number)
            read.append(lane.peek())
            lane.pop()
        batch = _collate(self.collator, read, [self.datasets[dataset].name for dataset in plan.datasets])
        cursor = {name: {number: lane.state_dict()} for name, lane in lanes.items()}
        # Even where this rank's part is of one dataset by chance: ranks must agree on what kind of step it is.
        return replace(batch, dataset=MIXED, cursor=cursor)

    def _lane(self, dataset: int, number: int) -> Lane:
        if (dataset, number) not in self._lanes:
            state = self.positions.get(self.datasets[dataset].name, {}).get(number)
            here = self.rank * self.lanes_per_rank + number
            lane = open_lane(self.datasets[dataset], self.seed, here, self.world * self.lanes_per_rank, state)
            self._lanes[dataset, number] = lane
        return self._lanes[dataset, number]

    def _take(self, dataset: TaskDataset, lane: Lane) -> list[Read]:
        """The next samples of a lane, as many as the dataset's batch may have."""
        config, read = dataset.config, []
        size = config.batch_size // self.world
        budget = None if config.batch_tokens is None else TokenBudget(config.batch_tokens // self.world, config.pack)
        rows = Rows({m: size for kind in dataset.kinds for m in kind.modalities} if budget is None else {})
        while budget is not None or len(read) < size:
            item = lane.peek()
            if budget is not None and not budget.add(dataset.size(item[0])):
                break
            lane.pop()
            read.append(_moved(item, rows))
        return read


Read: TypeAlias = "tuple[Example, list[LedgerEntry]]"


def _rows_for(begun: Iterable[Begun]) -> Rows:
    counts: Counter[str] = Counter()
    for one in begun:
        counts.update(one.media)
    return Rows(counts)


def _moved(read: Read, rows: Rows) -> Read:
    read[0].move(rows)
    return read


def _collate(collator: Collator, read: Sequence[Read], sources: str | Sequence[str]) -> MultimodalBatch:
    batch = collator([example for example, _ in read], sources)
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
            self._begin()
        batch = next(self._batches)
        if isinstance(batch, Failure):
            raise batch.error from RuntimeError(f"in a data-loader worker:\n{batch.trace}")
        self.step += 1
        for name, lanes in batch.cursor.items():
            self._positions.setdefault(name, {}).update(lanes)
        return batch

    def _begin(self) -> None:
        _try_semaphores(self.workers)
        others = set(active_children())
        self._batches = iter(self._loader())
        workers = set(active_children()) - others
        atexit.register(_end, workers, os.getpid())
        weakref.finalize(self, forget, [worker.pid for worker in workers])
        if not workers:
            keep_freed()

    def _loader(self) -> DataLoader:
        reader = self.reader
        reader.positions = {name: dict(lanes) for name, lanes in self._positions.items()}
        return DataLoader(
            reader,
            batch_sampler=MixtureSampler(self.mixture, self.step, reader.rank, reader.world),
            num_workers=self.workers,
            collate_fn=_as_it_is,
            pin_memory=self.pin,
            worker_init_fn=_begin_worker,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values: the mixture's cursor (`Mixture.drawn` of each dataset, too), and every lane's position."""
        names = [dataset.name for dataset in self.reader.datasets]
        return {
            "step": self.step,
            "seed": self.mixture.seed,
            "drawn": dict(zip(names, self.mixture.drawn(self.step), strict=True)),
            "sizes": {dataset.name: dataset.length for dataset in self.reader.datasets},
            "workers": self.reader.lanes_per_rank,
            "lanes": {name: dict(lanes) for name, lanes in self._positions.items()},
        }

    def load_state_dict(self, states: Sequence[dict[str, Any]], accept_new_lanes: bool = False) -> None:
        """Go on where the ranks' states say; one state for each of the ranks that were.

        Datasets read by number and step go on exactly, whatever the number of ranks and workers. Lanes do with as
        many of both as before.

        Args:
            accept_new_lanes: with other numbers, too, go on with a warning: see `lanes.regroup`.

        Raises:
            ValueError: datasets that were read by other lanes, unless accepted; batches that were read already.
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
        if len(states) == self.reader.world and mine["workers"] == self.reader.lanes_per_rank:
            self._positions = {name: dict(lanes) for name, lanes in mine["lanes"].items()}
        else:
            self._regroup(states, mine["workers"], accept_new_lanes)

    def _regroup(self, states: Sequence[dict[str, Any]], workers: int, accept: bool) -> None:
        """Positions for other lanes than the states', or an error that names the datasets, the change and the way."""
        world, lanes = self.reader.world, self.reader.lanes_per_rank
        change = f"{len(states)} x {workers} lanes (processes x workers), now by {world} x {lanes}"
        refused = []
        for dataset in self.reader.datasets:
            old = {
                rank * workers + lane: position
                for rank, state in enumerate(states)
                for lane, position in state["lanes"].get(dataset.name, {}).items()
            }
            if not old:
                continue
            told = f"dataset '{dataset.name}' was read by {change}"
            if not accept:
                refused.append(told)
                continue
            loss = "its shards begin a new epoch" if dataset.sequential else "a few samples are read again"
            logger.warning("%s: %s", told, loss)
            self._positions[dataset.name] = dict.fromkeys(range(lanes), regroup(dataset, old, len(states) * workers))
        if refused:
            keys = ["world"] * (len(states) != world) + ["run.num_workers"] * (workers != lanes)
            raise ValueError(
                "\n".join(refused) + f"\ndata read in sequence or by batch_tokens can only go on with as many lanes: "
                f"take {len(states)} processes and run.num_workers: {workers}, or accept that samples are lost or read "
                f"twice (run.accept_changes: [{', '.join(keys)}])"
            )


@contextlib.contextmanager
def workers_explained() -> Iterator[None]:
    """Inside, the end of a data-loader worker is a ValueError with a remedy. PyTorch may tell of it at any moment."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise ValueError(
            f"{str(error).splitlines()[0]} Killed from outside, memory has run out as a rule: take fewer "
            f"run.num_workers or smaller batches; by a bus error, {DEV_SHM} is full: {SHM_SIZE}"
        ) from error


def _try_semaphores(workers: int) -> None:
    """Raise OSError where there is no room for the semaphores of the workers' queues, a handful for each."""
    try:
        _ = [Lock() for _ in range(4 * workers + 4)] if workers else []
    except OSError as error:
        raise OSError(
            f"run.num_workers: {workers} workers cannot be started, {DEV_SHM} is full or missing "
            f"({error.strerror or error}); {SHM_SIZE}, or take run.num_workers: 0"
        ) from error


def _as_it_is(batch: MultimodalBatch | Failure) -> MultimodalBatch | Failure:
    return batch


def _begin_worker(number: int) -> None:
    keep_freed()
    _leave_signals_to_parent()


def _leave_signals_to_parent() -> None:
    """A signal to the whole process group asks the training process for a checkpoint; it still needs its batches."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _end(workers: set[BaseProcess], parent: int) -> None:
    """When the program ends with an error, Python would wait for ever for workers that do not obey SIGTERM."""
    if os.getpid() == parent:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch would report their end as an error
        for worker in workers:
            worker.kill()
