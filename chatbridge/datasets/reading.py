"""From the mixture to batches: what data-loader workers do, and a position that can be saved and taken up again."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import traceback
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import Lock, active_children
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader, get_worker_info

from chatbridge.common.batch import MIXED, MultimodalBatch, mapped
from chatbridge.common.shared_memory import DEV_SHM, SHM_SIZE, shared_copy
from chatbridge.datasets.base import TaskDataset
from chatbridge.datasets.collate import Collator, TokenBudget
from chatbridge.datasets.mixture import BatchPlan, Mixture
from chatbridge.datasets.streams import Read, SampleStream, restarted, stream_of

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
        for modality in dataset.modalities:
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

    Attributes:
        cursors: dataset -> worker of this rank -> where its stream begins.

    Raises:
        ValueError: a budget of positions that the ranks cannot share.
    """

    def __init__(
        self, datasets: Sequence[TaskDataset], collator: Collator, seed: int, rank: int, world: int, workers: int
    ):
        self.datasets = list(datasets)
        self.collator = collator
        self.seed, self.rank, self.world = seed, rank, world
        self.workers = max(1, workers)
        self.cursors: dict[str, dict[int, Any]] = {}
        self._streams: dict[tuple[int, int], SampleStream] = {}
        for dataset in self.datasets:
            config = dataset.config
            share = None if config.batch_tokens is None else config.batch_tokens // world
            if share is not None and share < (config.pack or 1):
                raise ValueError(
                    f"datasets.{dataset.name}.batch_tokens: {config.batch_tokens} positions shared by {world} "
                    f"processes do not hold one row of {config.pack or 1}"
                )
            dataset.max_positions = config.pack or share

    def __getitem__(self, plan: BatchPlan) -> MultimodalBatch | Failure:
        try:
            batch = self._batch(plan)
            if get_worker_info() is None:
                return batch
            return replace(batch, media={name: mapped(media, shared_copy) for name, media in batch.media.items()})
        except (ValueError, OSError) as error:
            return Failure(error, traceback.format_exc())
        except MemoryError:
            return Failure(ValueError("a batch does not fit into memory; take smaller ones"), traceback.format_exc())

    def _batch(self, plan: BatchPlan) -> MultimodalBatch:
        worker, streams, read = plan.step % self.workers, {}, []
        for draw in plan.draws:
            dataset = self.datasets[draw.dataset]
            if draw.index >= 0:
                read.append(dataset.example(draw.index, draw.epoch))
            else:
                stream = streams[dataset.name] = self._stream(draw.dataset, worker)
                read.append(stream.next())
        if plan.dataset is None:
            # Even where this rank's part is of one dataset by chance: ranks must agree on what kind of step it is.
            name, collator = MIXED, self.collator
            sources = [self.datasets[draw.dataset].name for draw in plan.draws]
        else:
            dataset = self.datasets[plan.dataset]
            name, collator, sources = dataset.name, replace(self.collator, pack=dataset.config.pack), dataset.name
            if not plan.draws:
                stream = streams[name] = self._stream(plan.dataset, worker)
                read = list(self._next_batch(dataset, stream))
        batch = collator([example for example, _ in read], sources)
        ledger = [entry for _, entries in read for entry in entries]
        cursor = {source: {worker: stream.state_dict()} for source, stream in streams.items()}
        return replace(batch, dataset=name, ledger=ledger, cursor=cursor)

    def _stream(self, dataset: int, worker: int) -> SampleStream:
        """A stream of this rank's worker, where it stands."""
        if (dataset, worker) not in self._streams:
            state = self.cursors.get(self.datasets[dataset].name, {}).get(worker)
            number, count = self.rank * self.workers + worker, self.world * self.workers
            self._streams[dataset, worker] = stream_of(self.datasets[dataset], self.seed, number, count, state)
        return self._streams[dataset, worker]

    def _next_batch(self, dataset: TaskDataset, stream: SampleStream) -> Iterator[Read]:
        """The next samples of a stream, as many as the dataset's batch may have."""
        config = dataset.config
        if config.batch_tokens is None:
            for _ in range(config.batch_size // self.world):
                yield stream.next()
            return
        budget = TokenBudget(config.batch_tokens // self.world, config.pack)
        while budget.add(dataset.size(stream.peek()[0])):
            yield stream.next()


class BatchStream(Iterator[MultimodalBatch]):
    """The batches of one rank, and their position as state: how far they were handed out, not how far workers are.

    Args:
        reader: reads in the workers; mixture: what each step reads; workers: 0 reads in this process; pin: hand out
            page-locked memory.
    """

    def __init__(self, reader: MixtureReader, mixture: Mixture, workers: int, pin: bool):
        self.reader, self.mixture, self.workers, self.pin = reader, mixture, workers, pin
        self.step = 0
        self._cursors: dict[str, dict[int, Any]] = {}
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
        for name, states in batch.cursor.items():
            self._cursors.setdefault(name, {}).update(states)
        return batch

    def _begin(self) -> None:
        _try_semaphores(self.workers)
        others, reader = set(active_children()), self.reader
        reader.cursors = {name: dict(states) for name, states in self._cursors.items()}
        loader = DataLoader(
            reader,
            batch_size=None,  # the reader gives whole batches
            sampler=self.mixture.plans(self.step, reader.rank, reader.world),
            num_workers=self.workers,
            pin_memory=self.pin,
            worker_init_fn=_leave_signals_to_parent,
        )
        self._batches = iter(loader)
        atexit.register(_end, weakref.WeakSet(set(active_children()) - others), os.getpid())

    def state_dict(self) -> dict[str, Any]:
        """Plain values: the mixture's cursor (`Mixture.drawn` of each dataset, too), and every stream's."""
        names = [dataset.name for dataset in self.reader.datasets]
        return {
            "step": self.step,
            "seed": self.mixture.seed,
            "drawn": dict(zip(names, self.mixture.drawn(self.step), strict=True)),
            "sizes": {dataset.name: dataset.length for dataset in self.reader.datasets},
            "workers": self.reader.workers,
            "cursors": {name: dict(states) for name, states in self._cursors.items()},
        }

    def load_state_dict(self, states: Sequence[dict[str, Any]], accept_new_workers: bool = False) -> None:
        """Go on where the ranks' states say; one state for each of the ranks that were.

        Datasets read by number and step go on exactly, whatever the number of ranks and workers. Streams do with as
        many of both as before.

        Args:
            accept_new_workers: with other numbers, too, go on with a warning: see `restarted`.

        Raises:
            ValueError: streams of other workers, unless accepted; batches that were read already.
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
        cursors = [state["cursors" if "cursors" in state else "lanes"] for state in states]  # lanes: its earlier name
        if len(states) == self.reader.world and mine["workers"] == self.reader.workers:
            self._cursors = {name: dict(found) for name, found in cursors[self.reader.rank].items()}
        else:
            self._restart(cursors, mine["workers"], accept_new_workers)

    def _restart(self, cursors: Sequence[dict[str, dict[int, Any]]], before: int, accept: bool) -> None:
        """Cursors for other workers, or an error that names the datasets, the change and the way.

        Args:
            cursors: of every rank there was; before: workers of each.
        """
        world, workers = self.reader.world, self.reader.workers
        change = f"{len(cursors)} x {before} workers (processes x run.num_workers), now by {world} x {workers}"
        refused = []
        for dataset in self.reader.datasets:
            name = dataset.name
            old = {rank * before + w: s for rank, found in enumerate(cursors) for w, s in found.get(name, {}).items()}
            if not old:
                continue
            if not accept:
                refused.append(f"dataset '{name}' was read by {change}")
                continue
            loss = "its shards begin a new epoch" if dataset.sequential else "a few samples are read again"
            logger.warning("dataset '%s' was read by %s: %s", name, change, loss)
            self._cursors[name] = dict.fromkeys(range(workers), restarted(dataset, old, len(cursors) * before))
        if refused:
            keys = ["world"] * (len(cursors) != world) + ["run.num_workers"] * (before != workers)
            raise ValueError(
                "\n".join(refused) + f"\ndata read in sequence or by batch_tokens can only go on with as many workers: "
                f"take {len(cursors)} processes and run.num_workers: {before}, or accept that samples are lost or read "
                f"twice (run.accept_changes: [{', '.join(keys)}])"
            )


@contextlib.contextmanager
def workers_explained() -> Iterator[None]:
    """Inside, the end of a data-loader worker is a ValueError with a remedy. PyTorch may raise it at any moment."""
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


def _leave_signals_to_parent(_: int) -> None:
    """A signal to the whole process group asks the training process for a checkpoint; it still needs its batches."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _end(workers: weakref.WeakSet[BaseProcess], parent: int) -> None:
    """When the program ends with an error, Python would wait for ever for workers that do not obey SIGTERM."""
    if os.getpid() == parent:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch would report their end as an error
        for worker in workers:
            worker.kill()
