"""Optimisers and their groups over the trainable parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim._muon import _adjust_lr

DECAY_RULES = ("all", "matrices")


class Muon(torch.optim.Muon):
    """PyTorch's Muon with the precision of its iteration chosen by the device: fp32 on CPUs, bf16 elsewhere.

    PyTorch iterates in bf16 always. Most CPUs have no instructions for it (one update of a 192 x 768 matrix then takes
    290 ms instead of 12), and results would depend on whether this one has. Arguments, state and checkpoints are those
    of `torch.optim.Muon`.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update, as in Keller Jordan's description (kellerjordan.github.io/posts/muon)."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            momentum, rate = group["momentum"], group["lr"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                average = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
                direction = matrix.grad.lerp(average, momentum) if group["nesterov"] else average
                update = _orthogonalised(direction, group["ns_coefficients"], group["ns_steps"], group["eps"])
                matrix.mul_(1 - rate * group["weight_decay"])
                matrix.add_(update, alpha=-_adjust_lr(rate, group["adjust_lr_fn"], matrix.shape))
        return loss


def _orthogonalised(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The nearest matrix [R, C] whose singular values are all about 1, by Newton and Schulz' iteration."""
    a, b, c = coefficients
    x = matrix.to(torch.float32 if matrix.device.type == "cpu" else torch.bfloat16)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


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
        muon = Muon([p for _, p in matrices], lr=muon_lr, weight_decay=weight_decay)
        for group in muon.param_groups:
            group["lr_scale"] = muon_lr / lr
        optimizers.append(muon)
    return optimizers


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    """Set every group's rate: `rate` times the group's own factor ("lr_scale", 1 where absent)."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
