"""Memory that data-loader workers share with the training process: not in /dev/shm, and enough of it.

PyTorch's loader puts what workers send into /dev/shm, of which containers have 64 MB unless told otherwise, and a
process that writes where there is no more is killed. What is shared already it sends as it is: here that is memory of
memfd_create(2), which counts as ordinary memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import psutil
import torch
from torch import Tensor

from chatbridge.common.config import Config

DEV_SHM = "/dev/shm"
SHM_SIZE = "give the container more (docker run --shm-size=8g, or --ipc=host)"

AHEAD = 4
"""Batches of a worker at a time: PyTorch's loader fetches two ahead, one is being written and one is in use."""

NCCL_BYTES = 1 << 30
"""NCCL's buffers between the GPUs of a node are in /dev/shm: some 10 MB for each pair of them and channel."""


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


def worker_notes(config: Config, sample_bytes: Mapping[str, int], world: int, gpus: int | None = None) -> list[str]:
    """What is worth saying of a training run's shared memory, a line each; those that begin with "warning" matter.

    Args:
        sample_bytes: dataset -> bytes of a sample's media as workers hand them on, of those that are known.
        world: processes of the run, of which this machine has as many as GPUs, or one.
        gpus: of this machine; None asks.
    """
    notes, gpus = [], torch.cuda.device_count() if gpus is None else gpus
    workers = getattr(config.run, "num_workers", 0) * min(world, max(1, gpus))
    sizes = [size * max(1, _batch_size(config, config.datasets[name]) // world) for name, size in sample_bytes.items()]
    needed, (free, where) = workers * AHEAD * max(sizes, default=0), free_for_batches()
    if needed:
        need = f"{workers} workers hold up to {_gb(needed)} of batches in {where}, of which {_gb(free)} are free"
        remedy = SHM_SIZE if where == DEV_SHM else "take fewer run.num_workers, or smaller batches"
        notes.append(f"warning: {need}; {remedy}" if needed > free else need)
    in_shm = free_in_dev_shm()
    if gpus > 1 and in_shm is not None and in_shm < NCCL_BYTES:
        notes.append(f"warning: the GPUs talk through {DEV_SHM}, of which only {_gb(in_shm)} are free; {SHM_SIZE}")
    return notes


def _batch_size(config: Config, settings: Any) -> int:
    return config.mixture.batch_size or settings.batch_size


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
