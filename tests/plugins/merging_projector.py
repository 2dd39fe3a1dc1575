"""A projector from outside the package: neighbouring tokens are joined, a perceptron makes a row of each group."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from chatbridge.common.registry import PROJECTORS
from chatbridge.common.schema import key


@dataclass(kw_only=True)
class MergingConfig:
    merge: int = key(2, low=1, unit="tokens", help="joined into one row, within a frame")
    hidden: int = key(32, low=1, help="width between the two layers")


@PROJECTORS.register("merging_mlp", config=MergingConfig)
class MergingProjector(nn.Module):
    may_differ = ()

    def __init__(self, config: MergingConfig, token_width: int, llm_width: int, shared: MergingProjector | None = None):
        super().__init__()
        self.merge = config.merge
        self.inner = shared.inner if shared else nn.Linear(config.merge * token_width, config.hidden)
        self.projection = shared.projection if shared else nn.Linear(config.hidden, llm_width)

    @staticmethod
    def rows(config: MergingConfig, tokens) -> int:
        return tokens.frames * math.ceil(tokens.count / config.merge)

    def forward(self, tokens_NTSE: Tensor, grid: Tensor | None = None) -> Tensor:
        missing = -tokens_NTSE.shape[2] % self.merge
        groups = F.pad(tokens_NTSE, (0, 0, 0, missing)).unflatten(2, (-1, self.merge)).flatten(3)
        return self.projection(F.gelu(self.inner(groups.flatten(1, 2))))
