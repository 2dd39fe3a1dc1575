"""Memory of batches, used again for batch after batch; a data-loader worker shares it with the training process.

PyTorch gives every batch fresh shared memory, and the system hands that out page by page, zeroed, while it is written
to: for a batch of pictures this takes longer than collating it. It also hands every tensor over in a connection of its
own, and maps it anew. A process here keeps a few slabs instead; a worker's are mapped by the training process once.
Which of them are free is told by a byte at the end of each, which the training process clears when it is done with the
batch. For the same reason what was freed is kept for the next sample (`keep_freed`).

What is shared is ordinary memory (memfd_create(2)). PyTorch takes it from /dev/shm, of which containers have 64 MB
unless told otherwise, and a process that writes where there is no more is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from operator import le
from pathlib import Path
from typing import TypeAlias

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

SLABS = 8
"""Slabs of a worker, at most: PyTorch's loader fetches two batches ahead, one is written and one in use, and each may
have two modalities."""

Placed: TypeAlias = "tuple[tuple[int, ...], str]"
"""Shape of a tensor at the beginning of a slab, and its type, such as "uint8" (as text, for it is pickled)."""


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""

KEPT, LARGEST = 128 * 2**20, 32 * 2**20
"""Bytes of freed memory that a process keeps, and the size from which on a piece is given back at once."""


def keep_freed() -> None:
    """Let this process keep up to `KEPT` bytes that it has freed, where its C library is glibc.

    By default everything above about a megabyte goes back to the system whenever the media of a batch are freed, and is
    handed out again page by page for the next ones.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, KEPT)


DEV_SHM = "/dev/shm"

CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Where Linux tells what a container may use, and uses: version 2, and 1."""

SHM_SIZE = "give the container more (docker run --shm-size=8g, or --ipc=host)"


def shared_memory(size: int) -> Tensor:
    """uint8, zeros, for other processes to map when the tensor is sent to them.

    Raises:
        OSError: where the system has no memfd and /dev/shm has no room.
    """
    descriptor = _memfd()
    if descriptor is None:
        return _in_dev_shm(size)
    try:
        os.ftruncate(descriptor, size)
        storage = torch.UntypedStorage._new_shared_fd_cpu(descriptor, size)
    finally:
        os.close(descriptor)
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _memfd() -> int | None:
    try:
        return os.memfd_create("chatbridge")
    except (AttributeError, OSError):  # not on this system, or forbidden by a sandbox
        return None


def _in_dev_shm(size: int) -> Tensor:
    free = free_in_dev_shm()
    if free is not None and free < size:
        raise OSError(f"{DEV_SHM} has {free:,} bytes free and a batch takes {size:,}; {SHM_SIZE}")
    return torch.zeros(size, dtype=torch.uint8).share_memory_()


def free_in_dev_shm() -> int | None:
    """Bytes; None where there is no such place."""
    try:
        found = os.statvfs(DEV_SHM)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def room() -> tuple[int, str]:
    """Bytes that are free for `shared_memory`, and where."""
    descriptor = _memfd()
    if descriptor is None:
        return free_in_dev_shm() or 0, DEV_SHM
    os.close(descriptor)
    return min([psutil.virtual_memory().available, *_left_by_cgroups()]), "memory"


def _left_by_cgroups() -> Iterator[int]:
    for most, used in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            yield int(Path(most).read_text()) - int(Path(used).read_text())


class Slab:
    """Memory of one process.

    Attributes:
        number: its place in the pool; memory: uint8, the last byte says whether it is in use.
        in_use: that byte.
        sent: whether the training process has mapped it.
    """

    def __init__(self, number: int, size: int, shared: bool):
        self.number, self.sent = number, False
        self.memory = shared_memory(size + 1) if shared else torch.zeros(size + 1, dtype=torch.uint8)
        self.in_use = _last_byte(self.memory)

    @property
    def size(self) -> int:
        return len(self.memory) - 1

    @property
    def free(self) -> bool:
        return not self.in_use[0]


def _last_byte(memory: Tensor) -> np.ndarray:
    return memory.numpy()[-1:]  # of a tensor, looking at one byte takes ten times as long


class Lease:
    """One use of a slab. It ends with the last reference: in this process, or in the one that it was sent to.

    Args:
        memory, in_use: the slab's; slab: in a worker, which sends it on.
    """

    def __init__(self, memory: Tensor, in_use: np.ndarray, slab: Slab | None = None):
        self.memory, self.in_use, self.slab, self._holder = memory, in_use, slab, os.getpid()

    def tensor(self, placed: Placed) -> Tensor:
        """The tensor that the slab begins with."""
        shape, dtype = placed[0], getattr(torch, placed[1])
        return self.memory[: prod(shape) * dtype.itemsize].view(dtype).view(*shape)

    def __reduce__(self) -> tuple:
        assert self.slab is not None, "only a worker's memory can be lent to another process"
        known, self.slab.sent = self.slab.sent, True  # what a worker sends arrives in order
        self._holder = None
        return _received, ((os.getpid(), self.slab.number), None if known else self.memory)

    def __del__(self) -> None:
        if self._holder == os.getpid():  # not where it was sent away, nor in a process that was forked meanwhile
            self.in_use[0] = 0


_mapped: dict[tuple[int, int], tuple[Tensor, np.ndarray]] = {}
"""In the training process: memory of slabs, and its last byte, by worker and number."""


def _received(slab: tuple[int, int], memory: Tensor | None) -> Lease:
    if memory is not None:
        _mapped[slab] = (memory, _last_byte(memory))
    return Lease(*_mapped[slab])


def forget(workers: Iterable[int]) -> None:
    """Let go of the slabs of workers that have ended; batches that are in use keep theirs."""
    gone = set(workers)
    for slab in [slab for slab in list(_mapped) if slab[0] in gone]:
        del _mapped[slab]


class SlabPool:
    """The slabs of one process; `shared` ones are a worker's, for batches that are sent."""

    def __init__(self, most: int = SLABS, shared: bool = True):
        self.most, self.shared = most, shared
        self._slabs: list[Slab] = []
        self._lock = threading.Lock()

    def borrow(self, size: int) -> Lease | None:
        """So many bytes or more; None when every slab is in use."""
        with self._lock:
            return self._borrow(size)

    def _borrow(self, size: int) -> Lease | None:
        free = [slab for slab in self._slabs if slab.free]
        slab = min((slab for slab in free if slab.size >= size), key=lambda slab: slab.size, default=None)
        full = len(self._slabs) == self.most
        if slab is None or (slab.size > 2 * size and not full):  # a large one is left to those who need it
            if not full:
                slab = Slab(len(self._slabs), size, self.shared)
                self._slabs.append(slab)
            elif free:
                slab = self._slabs[free[0].number] = Slab(free[0].number, size, self.shared)
            else:
                return None
        slab.in_use[0] = 1
        return Lease(slab.memory, slab.in_use, slab if self.shared else None)


_worker_pool, _own_pool = SlabPool(), SlabPool(shared=False)


def batch_memory(shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Lease | None]:
    """An uninitialised tensor for a batch: in a worker, in memory that is shared with the training process.

    The lease must live as long as the tensor is in use; `packed` sends both.
    """
    pool = _own_pool if get_worker_info() is None else _worker_pool
    size = prod(shape) * dtype.itemsize
    lease = pool.borrow(size)
    if lease is None:
        memory = shared_memory(size) if pool.shared else torch.empty(size, dtype=torch.uint8)
        return memory.view(dtype).view(*shape), None
    return lease.tensor((tuple(shape), _name(dtype))), lease


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape and type as one [N, ...]: in a worker, in memory that is shared."""
    if get_worker_info() is None:
        return torch.stack(list(tensors))
    first = tensors[0]
    memory = shared_memory(len(tensors) * first.nbytes).view(first.dtype)
    return torch.stack(list(tensors), out=memory.view(len(tensors), *first.shape))


class Rows:
    """Places in the memory of a batch, for its media one by one.

    A medium goes to its place as soon as it is read. It is still in the processor's cache then, and the memory that it
    was decoded to is used again for the next one; if all were kept until the last is there, they would take more than
    any cache holds.

    Args:
        counts: how many media of each modality the batch has. If there are more after all, it is copied.
    """

    def __init__(self, counts: Mapping[str, int]):
        self.counts = dict(counts)
        self._rows: dict[str, tuple[Tensor, Lease, Iterator[int]] | None] = {}

    def take(self, modality: str, shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Lease] | None:
        """The modality's next row, as large as its first one; None where that is not so large, or another type."""
        if count := self.counts.pop(modality, 0):
            memory, lease = batch_memory((count, *shape), dtype)
            self._rows[modality] = None if lease is None else (memory, lease, iter(range(count)))
        if (rows := self._rows.get(modality)) is not None:
            memory, lease, free = rows
            fits = dtype == memory.dtype and (shape == memory.shape[1:] or all(map(le, shape, memory.shape[1:])))
            number = next(free, None) if fits else None
            if number is not None:
                return memory[number], lease
            self._rows[modality] = None  # the batch will be copied after all
        return None


def side_by_side(rows: Sequence[Tensor], lease: Lease | None) -> Tensor | None:
    """[N, ...] of N rows [1, ...] that a lease's memory begins with, one behind the other; None where they do not."""
    first = rows[0]
    if lease is None or any(row.shape != first.shape or row.dtype != first.dtype for row in rows):
        return None
    start, step = lease.memory.data_ptr(), first.nbytes
    if any(row.data_ptr() != start + number * step or not row.is_contiguous() for number, row in enumerate(rows)):
        return None
    return lease.tensor(((len(rows), *first.shape[1:]), _name(first.dtype)))


def packed(tensor: Tensor, lease: Lease | None) -> tuple[Tensor | Placed, Lease | None]:
    """What to send to another process for a tensor from `batch_memory` and its lease."""
    if lease is None:
        return tensor, None
    if lease.slab is None:  # whoever it is sent to must not say when our use of it ends
        return tensor.clone(), None
    if tensor.data_ptr() != lease.memory.data_ptr() or not tensor.is_contiguous():
        return tensor, lease
    return (tuple(tensor.shape), _name(tensor.dtype)), lease


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def unpacked(sent: Tensor | Placed, lease: Lease | None) -> Tensor:
    """The tensor, where it has arrived."""
    return sent if isinstance(sent, Tensor) or lease is None else lease.tensor(sent)
