"""Random numbers of a training step: a function of seed, step and rank, so that no state need be saved."""

from __future__ import annotations

import os
import random

import numpy as np
import torch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed every generator (Python, NumPy, PyTorch on all devices): a resumed run draws what an uninterrupted one
    would. Workers draw from generators of their own, seeded by sample."""
    value = (seed * 1_000_003 + step) * 8191 + rank
    # Not torch.manual_seed: where CUDA has not begun, that keeps every call, with its stack, for when it does.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(value)
    random.seed(value)
    np.random.seed(value % 2**32)


def make_deterministic() -> None:
    """Let PyTorch take deterministic kernels only, and raise where an operation has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's matrix library is first used
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
