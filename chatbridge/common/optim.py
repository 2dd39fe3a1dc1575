"""Optimizers by name (``run.optimizer``), and their groups over the trainable parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim._muon import _adjust_lr

from chatbridge.common.registry import OPTIMIZERS
from chatbridge.common.schema import inherited, key

Named = Sequence[tuple[str, nn.Parameter]]
"""Trainable parameters and their names."""

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
) -> list[dict[str, Any]]:
    """Groups over the parameters that require a gradient, by whether they decay.

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


@dataclass(kw_only=True)
class AdamWConfig:
    """AdamW. What is null here is as the run says."""

    lr: float | None = key(None, low=0.0, high=1e3, help="peak learning rate; null: run.init_lr")
    weight_decay: float | None = key(None, low=0.0, high=1e3, help="decoupled weight decay; null: run.weight_decay")
    betas: list[float] | None = key(None, low=0.0, help="of the moments, below 1; null: run.betas")
    eps: float = key(1e-8, low=0.0, high=1.0, help="keeps divisors away from zero")


@OPTIMIZERS.register("adamw", config=AdamWConfig)
def adamw(config: AdamWConfig, named: Named, run: Any) -> list[torch.optim.Optimizer]:
    """AdamW over everything, as published."""
    config = inherited(config, run)
    check_betas(config.betas)
    groups = with_peak(parameter_groups(named, config.weight_decay, run.decay), config.lr, run)
    return [torch.optim.AdamW(groups, lr=run.init_lr, betas=tuple(config.betas), eps=config.eps)]


@dataclass(kw_only=True)
class MuonConfig:
    """Muon for the matrices. What is null here is as the run says, as everything of the AdamW for the rest is."""

    lr: float | None = key(
        None, low=0.0, high=1e3, help="peak learning rate, about ten times AdamW's; null: run.muon_lr"
    )
    weight_decay: float | None = key(None, low=0.0, high=1e3, help="decoupled weight decay; null: run.weight_decay")
    momentum: float = key(0.95, low=0.0, high=1.0, help="of the average of gradients")


@OPTIMIZERS.register("muon", config=MuonConfig)
def muon(config: MuonConfig, named: Named, run: Any) -> list[torch.optim.Optimizer]:
    """AdamW over what is no matrix, and Muon over the matrices."""
    config = inherited(config, run)
    matrices = [parameter for _, parameter in named if parameter.dim() == 2]
    optimizers = adamw(AdamWConfig(), [(name, p) for name, p in named if p.dim() != 2], run)
    if matrices:
        lr = run.muon_lr if config.lr is None else config.lr
        groups = with_peak([{"params": matrices}], lr, run)
        optimizers.append(Muon(groups, lr=lr, weight_decay=config.weight_decay, momentum=config.momentum))
    return optimizers


def with_peak(groups: list[dict[str, Any]], lr: float | None, run: Any) -> list[dict[str, Any]]:
    """The groups, made to follow the run's schedule up to a peak of their own; None leaves them at `run.init_lr`.

    Raises:
        ValueError: where the schedule has no peak to follow.
    """
    if lr is not None:
        if run.init_lr == 0:
            raise ValueError("run.init_lr must be positive: the optimizer's own rate follows its schedule")
        for group in groups:
            group["lr_scale"] = lr / run.init_lr
    return groups


def check_betas(betas: Sequence[float]) -> None:
    """Raise ValueError unless these are AdamW's two moments."""
    if len(betas) != 2 or not max(betas) < 1:
        raise ValueError(f"betas: two numbers from 0 to below 1 are needed, found {list(betas)}")


def build_optimizers(named: Iterable[tuple[str, nn.Parameter]], run: Any) -> list[torch.optim.Optimizer]:
    """What ``run.optimizer`` names, over everything trainable.

    Args:
        named: (name, parameter) pairs; frozen ones are left out.
        run: the ``run:`` section, a `TrainingConfig`.

    Raises:
        ValueError: when nothing is trainable, or a key has a value that does not go.
    """
    trainable = [(name, p) for name, p in named if p.requires_grad]
    if not trainable:
        raise ValueError("nothing to train: every parameter of the model is frozen")
    optimizers = OPTIMIZERS.build(run.optimizer, trainable, run)
    if len(optimizers) > 1 and run.precision() == "fp16":
        name = OPTIMIZERS.name_of(run.optimizer)
        raise ValueError(f"run.optimizer {name}: amp fp16 scales losses for one optimizer only; take amp: bf16")
    return optimizers


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    """Set every group's rate: `rate` times the group's own factor ("lr_scale", 1 where absent)."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
