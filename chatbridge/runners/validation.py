"""Losses on held-out data during training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from chatbridge.datasets.held_out import HeldOut
from chatbridge.runners.assembly import Assembly

logger = logging.getLogger("chatbridge")


class Validator:
    """Goes through every validation set, in order, on all processes together.

    Args:
        assembly: has the datasets. model: not the wrapped one; gradients are not joined here.
        batches: of each set at most; None takes all.
    """

    def __init__(self, assembly: Assembly, model: nn.Module, accelerator: Accelerator, batches: int | None):
        self.assembly, self.model, self.accelerator, self.batches = assembly, model, accelerator, batches

    @cached_property
    def sets(self) -> list[HeldOut]:
        """This rank's share of every set. Raises ValueError: one that cannot be opened."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return list(self.assembly.held_out(rank, world, self.batches))

    @torch.no_grad()
    def losses(self, on_batch: Callable[[], None]) -> dict[str, dict[str, Any]]:
        """Validation set -> "loss", the mean per supervised token, and, where there are any, how many samples were
        "unreadable": those are not in the loss. A set of nothing else is left out. Leaves the model in eval mode.

        Args:
            on_batch: called before every batch.
        """
        self.model.eval()
        found = {}
        for held_out in self.sets:
            sums = torch.zeros(3, dtype=torch.float64, device=self.accelerator.device)
            on_batch()
            for batch, counts in held_out:
                on_batch()
                with self.accelerator.autocast():
                    output = self.model(batch.to(self.accelerator.device))
                if counts:
                    sums[0] += output.loss_sum.double()
                    sums[1] += output.supervised_tokens
            sums[2] = held_out.unreadable
            if self.accelerator.num_processes > 1:
                torch.distributed.all_reduce(sums)
            name, (loss, tokens, unreadable) = held_out.dataset.name, sums.tolist()
            if unreadable:
                logger.warning("validation.%s: %d samples could not be read and are not in its loss", name, unreadable)
            if not held_out.empty:
                found[name] = {"loss": loss / max(tokens, 1.0)}
                if unreadable:
                    found[name]["unreadable"] = int(unreadable)
        return found
