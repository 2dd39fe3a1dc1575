"""The optimizers of everything that is pre-trained here: Muon for matrices, AdamW for the rest."""

from __future__ import annotations

import torch
from torch import nn

from chatbridge.common.optim import Muon


class Optimizers:
    """Muon on the matrices of a model's layers, AdamW on embeddings, norms, biases and convolutions.

    Args:
        model: what to train.
        muon_lr, adam_lr: rates on the plateau of the schedule.
        steps: length of the training.
    """

    def __init__(self, model: nn.Module, muon_lr: float, adam_lr: float, steps: int):
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name and "head" not in name]
        chosen = set(matrices)
        rest = [p for _, p in named if p not in chosen]
        self.members = [
            Muon(matrices, lr=muon_lr, weight_decay=0.0, momentum=0.95),
            torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.rates = [muon_lr, adam_lr]
        self.steps = steps

    def step(self, step: int) -> None:
        """Update the weights at the rate of step number `step`, and forget the gradients."""
        factor = min(1.0, (step + 1) / 20, (self.steps - step) / (0.5 * self.steps))
        for member, rate in zip(self.members, self.rates, strict=True):
            for group in member.param_groups:
                group["lr"] = rate * factor
            member.step()
            member.zero_grad(set_to_none=True)
