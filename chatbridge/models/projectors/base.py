"""What the package's projectors have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from chatbridge.common.schema import key


@dataclass(kw_only=True)
class ProjectorConfig:
    """Keys that each of them has."""

    encoder_width: int | None = key(
        None, help="width of the tokens it looks at, made by an adapter; null: the encoder's own", low=1, high=1 << 16
    )


@torch.no_grad()
def redraw(linear: nn.Linear, length: float, rms: float = 1.0) -> None:
    """Draw a linear layer anew, so that its outputs have about this length.

    A matrix of standard deviation s makes outputs of length s * rms * sqrt(inputs * outputs).

    Args:
        rms: root mean square of what goes in; 1 behind a layer norm.
    """
    nn.init.normal_(linear.weight, std=length / (linear.in_features * linear.out_features) ** 0.5 / rms)
    nn.init.zeros_(linear.bias)
