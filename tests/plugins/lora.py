"""A language model from outside the package: its own, with LoRA (arXiv 2106.09685) on some of the matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chatbridge.common.registry import LLMS
from chatbridge.common.schema import key
from chatbridge.models import CausalLM, CausalLMConfig


@dataclass(kw_only=True)
class LoraConfig(CausalLMConfig):
    rank: int = key(2, low=1, help="of what is added to a matrix")
    targets: list[str] = key(["q_proj", "v_proj"], help="the linear layers that it is added to, by their last name")
    scale: float = key(2.0, low=0.0, help="of what is added")


class LoraLinear(nn.Linear):
    """A frozen linear layer, under the names it had, and the product of two narrow matrices beside it."""

    def __init__(self, old: nn.Linear, config: LoraConfig):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.scale = old.in_features, old.out_features, config.scale
        self.weight, self.bias = old.weight, old.bias
        self.down = nn.Parameter(torch.randn(config.rank, old.in_features) / old.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(old.out_features, config.rank))

    def forward(self, x: Tensor) -> Tensor:
        added = x.to(self.down.dtype) @ self.down.T @ self.up.T * self.scale
        return super().forward(x) + added.to(x.dtype)


@LLMS.register("lora", config=LoraConfig)
class LoraLM(CausalLM):
    def __init__(self, config: LoraConfig, model: nn.Module | None = None):
        super().__init__(config, model)
        for parent in list(self.model.modules()):
            for name, child in list(parent.named_children()):
                if name in config.targets and isinstance(child, nn.Linear):
                    setattr(parent, name, LoraLinear(child, config))
