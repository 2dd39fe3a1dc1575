"""Optimiser groups over the trainable parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

DECAY_RULES = ("all", "matrices")


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, decay: str = "all"
) -> list[dict[str, object]]:
    """Groups for AdamW over the parameters that require a gradient.

    Args:
        named: (name, parameter) pairs; frozen ones are left out (they have no gradient, so the original's single
            group, which held them, never moved them either).
        weight_decay: decoupled decay of the decaying group.
        decay: "all" decays everything, biases, norms and queries included, as the published runs did; "matrices"
            only weights of two dimensions or more that are not query banks or position embeddings.
    """
    if decay not in DECAY_RULES:
        raise ValueError(f"run.decay: {decay!r} is not one of {DECAY_RULES}")
    trainable = [(name, p) for name, p in named if p.requires_grad]
    if decay == "all":
        return [{"params": [p for _, p in trainable], "weight_decay": weight_decay}]
    decaying = [p for name, p in trainable if p.dim() >= 2 and not _is_table(name)]
    others = [p for name, p in trainable if p.dim() < 2 or _is_table(name)]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _is_table(name: str) -> bool:
    return "query_tokens" in name or "temporal" in name


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's rate: `rate` times the group's own factor ("lr_scale", 1 where absent)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
