"""A fourth modality, from outside the package: heat maps as ``.npy`` files, and a small encoder for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from chatbridge.common.registry import ENCODERS, PROCESSORS
from chatbridge.common.schema import key
from chatbridge.processors import MediaError


@dataclass(kw_only=True)
class ThermalConfig:
    side: int = key(16, low=8, unit="pixels", help="side of a heat map")


@PROCESSORS.register("thermal", config=ThermalConfig)
class ThermalProcessor:
    modality = "thermal"
    extensions = (".npy",)

    def __init__(self, config: ThermalConfig):
        self.shape = (1, 1, config.side, config.side)

    def load(self, source, mode=None) -> Tensor:
        if not Path(source).is_file():
            raise MediaError(str(source), "does not exist")
        return torch.from_numpy(np.load(source)).float().reshape(self.shape)

    def blank(self) -> Tensor:
        return torch.zeros(self.shape)


@dataclass(kw_only=True)
class ThermalEncoderConfig:
    width: int = key(32, low=8, help="width of a token")


@ENCODERS.register("thermal_patches", config=ThermalEncoderConfig)
class ThermalEncoder(nn.Module):
    def __init__(self, config: ThermalEncoderConfig):
        super().__init__()
        self.width = config.width
        self.patches = nn.Conv2d(1, config.width, 4, stride=4)

    def forward(self, maps: Tensor) -> Tensor:
        return self.patches(maps).flatten(2).transpose(1, 2)
