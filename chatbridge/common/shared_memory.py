"""Tensors that a data-loader worker sends: in memory that the training process maps, and not in /dev/shm.

PyTorch's loader puts what workers send into /dev/shm, of which containers have 64 MB unless told otherwise, and a
process that writes where there is no more is killed. What is shared already it sends as it is: here that is memory of
memfd_create(2), which counts as ordinary memory.
"""

from __future__ import annotations

import os

import psutil
import torch
from torch import Tensor

DEV_SHM = "/dev/shm"
SHM_SIZE = "give the container more (docker run --shm-size=8g, or --ipc=host)"


def shared_copy(tensor: Tensor) -> Tensor:
    """The same numbers in memory that other processes can map.

    Raises:
        OSError: where the system has no memfd and /dev/shm has no room.
    """
    if not tensor.nbytes:
        return tensor  # there is nothing to map
    descriptor = _memfd()
    if descriptor is None:
        free = free_in_dev_shm()
        if free is not None and free < tensor.nbytes:
            raise OSError(f"{DEV_SHM} has {free:,} bytes free and a batch takes {tensor.nbytes:,}; {SHM_SIZE}")
        return tensor.clone().share_memory_()
    try:
        os.ftruncate(descriptor, tensor.nbytes)
        storage = torch.UntypedStorage._new_shared_fd_cpu(descriptor, tensor.nbytes)
    finally:
        os.close(descriptor)
    return torch.empty(0, dtype=tensor.dtype).set_(storage).view(tensor.shape).copy_(tensor)


def _memfd() -> int | None:
    try:
        return os.memfd_create("chatbridge")
    except (AttributeError, OSError):  # not on this system, or forbidden by a sandbox
        return None


def free_in_dev_shm() -> int | None:
    """Bytes; None where there is no such place."""
    try:
        found = os.statvfs(DEV_SHM)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def free_for_batches() -> tuple[int, str]:
    """Bytes that are free for what workers send, and where."""
    descriptor = _memfd()
    if descriptor is None:
        return free_in_dev_shm() or 0, DEV_SHM
    os.close(descriptor)
    return psutil.virtual_memory().available, "memory"
