"""An encoder from outside the package, whose tokens stand on no grid: one for each quantile of a picture's colours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chatbridge.common.registry import ENCODERS
from chatbridge.common.schema import key


@dataclass(kw_only=True)
class ColourConfig:
    width: int = key(32, low=1, help="width of a token")
    quantiles: int = key(5, low=2, help="tokens of a picture")


@ENCODERS.register("colours", config=ColourConfig)
class ColourEncoder(nn.Module):
    def __init__(self, config: ColourConfig):
        super().__init__()
        self.width, self.quantiles = config.width, config.quantiles
        self.colours = nn.Linear(3, config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        colours = pixels.flatten(2).sort(dim=-1).values
        places = torch.linspace(0, colours.shape[-1] - 1, self.quantiles).long()
        return self.colours(colours[..., places].transpose(1, 2))
