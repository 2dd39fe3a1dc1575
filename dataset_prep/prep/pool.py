"""Pieces of work on several processes; a file that kills its decoder costs one sample, not the run."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from dataset_prep.prep.items import CRASH, Drop, Item, PieceResult

Work = Callable[[int, list[Item]], PieceResult]
"""From the number of a piece and its samples to what became of them; picklable, and the same result every time."""


def run_pieces(work: Work, pieces: Iterable[tuple[int, list[Item]]], workers: int) -> Iterator[tuple[int, PieceResult]]:
    """The parts of all pieces, in the order in which they finish.

    Args:
        workers: processes; 0 works in this one, where a crashing decoder ends the run.

    Raises:
        ValueError: what `work` raises.
    """
    if workers == 0:
        for number, items in pieces:
            yield number, work(number, items)
        return
    waiting = iter(pieces)
    pending: dict[Future, tuple[int, list[Item]]] = {}
    refused: list[tuple[int, list[Item]]] = []
    pool = _pool(workers)
    try:
        while True:
            try:
                while len(pending) < 2 * workers and (piece := next(waiting, None)) is not None:
                    refused = [piece]  # by a pool that has broken in the meantime
                    pending[pool.submit(work, *piece)] = piece
                    refused = []
                if not pending:
                    return
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    part = future.result()
                    number, _ = pending.pop(future)
                    yield number, part
            except BrokenProcessPool:
                # Which of the pieces at work did it cannot be known: each is tried by itself.
                pool.shutdown(wait=False, cancel_futures=True)
                lost, pending, refused = [*pending.values(), *refused], {}, []
                for number, items in lost:
                    yield number, _isolated(work, number, items)
                pool = _pool(workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _isolated(work: Work, number: int, items: list[Item]) -> PieceResult:
    """One piece in a process of its own; when that dies, without the samples that kill a process by themselves."""
    try:
        return _alone(work, number, items)
    except BrokenProcessPool:
        pass
    survivors, crashed = [], []
    for item in items:
        try:
            _alone(work, number, [item])
            survivors.append(item)
        except BrokenProcessPool:
            crashed.append(Drop(item.id, CRASH, "the process that read it ended without a word", item.where))
    part = _alone(work, number, survivors) if survivors else PieceResult()
    part.dropped += crashed
    part.read += len(crashed)
    return part


def _alone(work: Work, number: int, items: list[Item]) -> PieceResult:
    with _pool(1) as pool:
        return pool.submit(work, number, items).result()


def _pool(workers: int) -> ProcessPoolExecutor:
    # Forking a process in which PyTorch has started threads can hang; fresh ones cost a few seconds once.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupts_to_the_parent)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
