"""An optimizer from outside the package: Lion (Chen et al. 2023, arXiv:2302.06675), which moves by the sign alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chatbridge.common.optim import parameter_groups, with_peak
from chatbridge.common.registry import OPTIMIZERS
from chatbridge.common.schema import key


@dataclass(kw_only=True)
class LionConfig:
    lr: float | None = key(None, low=0.0, help="peak learning rate; null: run.init_lr")
    betas: list[float] = key([0.9, 0.99], low=0.0, high=1.0, help="of the direction, and of the average of gradients")


class Lion(torch.optim.Optimizer):
    def __init__(self, groups, lr, betas):
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            one, two = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(average.lerp(p.grad, 1 - one).sign_(), alpha=group["lr"])
                average.lerp_(p.grad, 1 - two)


@OPTIMIZERS.register("lion", config=LionConfig)
def lion(config, named, run):
    groups = with_peak(parameter_groups(named, run.weight_decay, run.decay), config.lr, run)
    return [Lion(groups, run.init_lr, tuple(config.betas))]
