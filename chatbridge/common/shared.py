"""Memory that a data-loader worker shares with the training process, used again for batch after batch.

PyTorch gives every batch fresh shared memory, and the system hands that out page by page, zeroed, while it is written
to: for a batch of pictures this takes longer than collating it. It also hands every tensor over in a connection of its
own, and maps it anew. A worker here keeps a few slabs instead, which the training process maps once. Which of them are
free is told by a byte at the end of each, which the training process clears when it is done with the batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

SLABS = 4
"""Slabs of a worker: PyTorch's loader fetches two batches ahead, one is written and one in use."""

Placed: TypeAlias = "tuple[tuple[int, ...], torch.dtype]"
"""Shape and type of a tensor at the beginning of a slab."""


class Slab:
    """Shared memory of one worker.

    Attributes:
        number: its place in the pool; memory: uint8, the last byte says whether it is in use.
        sent: whether the training process has mapped it.
    """

    def __init__(self, number: int, size: int):
        self.number, self.sent = number, False
        self.memory = torch.zeros(size + 1, dtype=torch.uint8).share_memory_()

    @property
    def size(self) -> int:
        return len(self.memory) - 1

    @property
    def free(self) -> bool:
        return not int(self.memory[-1])


class Lease:
    """One use of a slab. It ends with the last reference in the process that the batch was sent to.

    Args:
        memory: the slab's; slab: in the worker; receiver: the process, where it was sent to one.
    """

    def __init__(self, memory: Tensor, slab: Slab | None = None, receiver: int | None = None):
        self.memory, self.slab, self.receiver = memory, slab, receiver

    def tensor(self, placed: Placed) -> Tensor:
        """The tensor that the slab begins with."""
        shape, dtype = placed
        return self.memory[: prod(shape) * dtype.itemsize].view(dtype).view(*shape)

    def __reduce__(self) -> tuple:
        if self.slab is None:
            return _received, (None, self.memory)
        known, self.slab.sent = self.slab.sent, True  # what a worker sends arrives in order
        return _received, ((os.getpid(), self.slab.number), None if known else self.memory)

    def __del__(self) -> None:
        if self.receiver == os.getpid():  # not in the worker, nor in another process that was forked meanwhile
            self.memory[-1:].zero_()


_mapped: dict[tuple[int, int], Tensor] = {}
"""In the training process: slabs by worker and number."""


def _received(slab: tuple[int, int] | None, memory: Tensor | None) -> Lease:
    if memory is None:
        memory = _mapped[slab]
    elif slab is not None:
        _mapped[slab] = memory
    return Lease(memory, receiver=os.getpid())


def forget(workers: Iterable[int]) -> None:
    """Let go of the slabs of workers that have ended; batches that are in use keep theirs."""
    gone = set(workers)
    for slab in [slab for slab in list(_mapped) if slab[0] in gone]:
        del _mapped[slab]


class SlabPool:
    """The slabs of one worker."""

    def __init__(self, most: int = SLABS):
        self.most = most
        self._slabs: list[Slab] = []

    def borrow(self, size: int) -> Lease | None:
        """So many bytes of shared memory or more; None when every slab is in use."""
        free = [slab for slab in self._slabs if slab.free]
        slab = min((slab for slab in free if slab.size >= size), key=lambda slab: slab.size, default=None)
        if slab is None:
            if len(self._slabs) < self.most:
                slab = Slab(len(self._slabs), size)
                self._slabs.append(slab)
            elif free:
                slab = self._slabs[free[0].number] = Slab(free[0].number, size)
            else:
                return None
        slab.memory[-1] = 1
        return Lease(slab.memory, slab)


_pool = SlabPool()


def batch_memory(shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Lease | None]:
    """An uninitialised tensor for a batch: in a worker, in memory that is shared with the training process.

    The lease must live as long as the tensor is in use, and be sent in its place (`packed`).
    """
    if get_worker_info() is None:
        return torch.empty(*shape, dtype=dtype), None
    lease = _pool.borrow(prod(shape) * dtype.itemsize)
    if lease is None:
        return torch.empty(*shape, dtype=dtype).share_memory_(), None
    return lease.tensor((tuple(shape), dtype)), lease


def packed(tensor: Tensor, lease: Lease | None) -> Tensor | Placed:
    """What to send of a tensor from `batch_memory`, beside its lease."""
    if lease is None or tensor.data_ptr() != lease.memory.data_ptr() or not tensor.is_contiguous():
        return tensor
    return tuple(tensor.shape), tensor.dtype


def unpacked(sent: Tensor | Placed, lease: Lease | None) -> Tensor:
    """The tensor, where it has arrived."""
    return sent if isinstance(sent, Tensor) or lease is None else lease.tensor(sent)
