"""Memory that data-loader workers share with the training process: what a run needs of it, and what there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from chatbridge.common.config import Config
from chatbridge.common.shared_memory import DEV_SHM, SHM_SIZE, free_for_batches, free_in_dev_shm

AHEAD = 4
"""Batches of a worker at a time: PyTorch's loader fetches two ahead, one is being written and one is in use."""

NCCL_BYTES = 1 << 30
"""NCCL's buffers between the GPUs of a node are in /dev/shm: some 10 MB for each pair of them and channel."""


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
        told = f"{workers} workers hold up to {_gb(needed)} of batches in {where}, of which {_gb(free)} are free"
        remedy = SHM_SIZE if where == DEV_SHM else "take fewer run.num_workers, or smaller batches"
        notes.append(f"warning: {told}; {remedy}" if needed > free else told)
    in_shm = free_in_dev_shm()
    if gpus > 1 and in_shm is not None and in_shm < NCCL_BYTES:
        notes.append(f"warning: the GPUs talk through {DEV_SHM}, of which only {_gb(in_shm)} are free; {SHM_SIZE}")
    return notes


def _batch_size(config: Config, settings: Any) -> int:
    return config.mixture.batch_size or settings.batch_size


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
