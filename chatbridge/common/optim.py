"""Optimisers and their groups over the trainable parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def build_optimizers(
    named: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    decay: str = "all",
    muon_lr: float | None = None,
) -> list[torch.optim.Optimizer]:
    """AdamW over everything trainable or, with `muon_lr`, Muon over its matrices and AdamW over the rest.

    Args:
        named: (name, parameter) pairs.
        lr: AdamW's peak rate; muon_lr: Muon's (its update is orthogonal, so its rates are about ten times larger).
        weight_decay, decay: see `parameter_groups`.

    Raises:
        ValueError: when nothing is trainable.
    """
    trainable = [(name, p) for name, p in named if p.requires_grad]
    if not trainable:
        raise ValueError("nothing to train: every parameter of the model is frozen")
    matrices = [(n, p) for n, p in trainable if p.dim() == 2] if muon_lr is not None else []
    chosen = {name for name, _ in matrices}
    groups = parameter_groups([(n, p) for n, p in trainable if n not in chosen], weight_decay, decay)
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr, betas=betas)]
    if matrices:
        muon = torch.optim.Muon([p for _, p in matrices], lr=muon_lr, weight_decay=weight_decay)
        for group in muon.param_groups:
            group["lr_scale"] = muon_lr / lr
        optimizers.append(muon)
    return optimizers


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    """Set every group's rate: `rate` times the group's own factor ("lr_scale", 1 where absent)."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
