"""Losses on held-out data during training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn

from chatbridge.runners.assembly import Assembly


class Validator:
    """Goes through every validation set, in order, on all processes together.

    Args:
        assembly: has the datasets. model: not the wrapped one; gradients are not joined here.
        batches: of each set at most; None takes all.
    """

    def __init__(self, assembly: Assembly, model: nn.Module, accelerator: Accelerator, batches: int | None):
        self.assembly, self.model, self.accelerator, self.batches = assembly, model, accelerator, batches

    @torch.no_grad()
    def losses(self, tell: Callable[[], None]) -> dict[str, float]:
        """Validation set -> mean loss per supervised token. Leaves the model in eval mode.

        Args:
            tell: called before every batch: there is progress.
        """
        self.model.eval()
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        found = {}
        for name, loader in self.assembly.validation_loaders(rank, world, self.batches):
            sums = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
            tell()
            for batch, counts in loader:
                tell()
                with self.accelerator.autocast():
                    output = self.model(batch.to(self.accelerator.device))
                if counts:
                    sums += torch.stack([output.loss_sum.double(), sums.new_tensor(float(output.supervised_tokens))])
            if world > 1:
                torch.distributed.all_reduce(sums)
            loss, tokens = sums.tolist()
            found[name] = loss / max(tokens, 1.0)
        return found
