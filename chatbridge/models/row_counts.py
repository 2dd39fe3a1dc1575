"""What is known of encoder tokens, and of the rows they become, before there are any: shapes alone, no weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from chatbridge.common.registry import ENCODERS, PROJECTORS
from chatbridge.contracts import Shape


class TokenShape:
    """The tokens of one medium: what a projector's `rows` may ask.

    Args:
        shape: of the medium, [T, ...].
        encoder: gives the encoder (on any device), when it is needed.

    Attributes:
        frames: T. count: S, tokens of one frame or clip. grid: which of them stands where [rows, columns], or None.
    """

    def __init__(self, shape: Shape, encoder: Callable[[], nn.Module]):
        self.frames = shape[0]
        self._step, self._encoder = tuple(shape[1:]), encoder

    @cached_property
    def count(self) -> int:
        return token_count(self._encoder(), self._step)

    @cached_property
    def grid(self) -> Tensor | None:
        return token_grid(self._encoder(), self._step)


class RowCount:
    """Rows of a medium by its shape [T, ...], by a bridge's configuration (`contracts.RowsOf`).

    Args:
        encoder: typed configuration; projector: likewise. name: the bridge's, for messages.
    """

    def __init__(self, encoder: Any, projector: Any, name: str):
        self.encoder, self.projector, self.name = encoder, projector, name
        self._known: dict[Shape, int] = {}

    def __call__(self, shape: Shape) -> int:
        shape = tuple(shape)
        if shape not in self._known:
            tokens = TokenShape(shape, lambda: meta_encoder(self.encoder))
            try:
                self._known[shape] = PROJECTORS.target_of(self.projector).rows(self.projector, tokens)
            except Exception as error:  # it may be the user's own code, and PyTorch's checks raise many classes
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise ValueError(
                    f"model.bridges.{self.name}: cannot tell how many rows a medium of shape {list(shape)} becomes: "
                    f"{reason}; an encoder may state its token_count"
                ) from error
        return self._known[shape]


def meta_encoder(config: Any) -> nn.Module:
    """An encoder's architecture on the meta device, in fp32 (half precision needs autocast, which is not there)."""
    changes = {"dtype": "float32", "weights": None}  # what files fill is another question
    changes = {name: value for name, value in changes.items() if hasattr(config, name)}
    config = replace(config, **changes) if changes else config
    with torch.device("meta"):
        return ENCODERS.build(config).eval()


@torch.no_grad()
def token_count(encoder: nn.Module, shape: Shape) -> int:
    """S of one frame or clip: what the encoder states, or makes of an empty one."""
    if hasattr(encoder, "token_count"):
        return encoder.token_count(shape)
    device = next((tensor.device for tensor in encoder.parameters()), None)
    return encoder(torch.zeros(1, *shape, device=device)).shape[1]


def token_grid(encoder: nn.Module, shape: Shape) -> Tensor | None:
    """Which token of a frame or clip stands where [rows, columns]; None where they stand on no grid."""
    return encoder.token_grid(shape) if hasattr(encoder, "token_grid") else None
