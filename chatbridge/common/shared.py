"""Memory that a data-loader worker shares with the training process, used again for batch after batch.

PyTorch gives every batch fresh shared memory, and the system hands that out page by page, zeroed, while it is written
to: for a batch of pictures this takes longer than collating it. A worker here keeps a few slabs instead. Which of
them are free is told by a byte at the end of each, which the training process clears when it has no use for the batch
any longer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

SLABS = 4
"""Slabs of a worker: PyTorch's loader fetches two batches ahead, one is written and one in use."""


class Lease:
    """One use of a slab. It ends with the last reference in the process that the batch was sent to.

    Args:
        flag: the slab's byte, uint8 [1].
    """

    def __init__(self, flag: Tensor, receiver: int | None = None):
        self.flag, self.receiver = flag, receiver

    def __reduce__(self) -> tuple:
        return _received, (self.flag,)

    def __del__(self) -> None:
        if self.receiver == os.getpid():  # not in the worker, nor in another process that was forked meanwhile
            self.flag.zero_()


def _received(flag: Tensor) -> Lease:
    return Lease(flag, os.getpid())


class SlabPool:
    """The slabs of one worker."""

    def __init__(self, most: int = SLABS):
        self.most = most
        self._slabs: list[Tensor] = []

    def borrow(self, size: int) -> tuple[Tensor, Lease] | None:
        """uint8 [size] in shared memory, with its lease; None when every slab is in use."""
        free = [slab for slab in self._slabs if not int(slab[-1])]
        fitting = [slab for slab in free if len(slab) > size]
        if not fitting:
            if len(self._slabs) >= self.most:
                if not free:
                    return None
                self._slabs = [slab for slab in self._slabs if slab is not free[0]]
            fitting = [torch.zeros(size + 1, dtype=torch.uint8).share_memory_()]
            self._slabs += fitting
        slab = min(fitting, key=len)
        slab[-1] = 1
        return slab[:size], Lease(slab[-1:])


_pool = SlabPool()


def batch_memory(shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Lease | None]:
    """An uninitialised tensor for a batch: in a worker, in memory that is shared with the training process.

    The lease must live as long as the tensor is in use, and be sent with it.
    """
    if get_worker_info() is None:
        return torch.empty(*shape, dtype=dtype), None
    borrowed = _pool.borrow(prod(shape) * dtype.itemsize)
    if borrowed is None:
        return torch.empty(*shape, dtype=dtype).share_memory_(), None
    data, lease = borrowed
    return data.view(dtype).view(*shape), lease
