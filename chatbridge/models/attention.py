"""What a perceiver's queries look at in a medium.

Its layers compute attention without ever holding the probabilities; here they are computed a second time, from the
same inputs, while the bridge runs as always. Shape letters: `chatbridge.common.batch`; H heads, C layers with
cross-attention, S tokens of one frame or clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chatbridge.models.bridge import Bridge
from chatbridge.models.row_counts import token_grid


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of every query over every encoder token.

    Attributes:
        weights_CNHQTS: probabilities; over T and S together they sum to 1.
        layers: the numbers of the C layers.
        grid: which token of a frame or clip stands where [rows, columns], None where they stand on no grid; a picture's
            rows go down, a spectrogram's rows go up in pitch and its columns forth in time.
    """

    weights_CNHQTS: Tensor
    layers: tuple[int, ...]
    grid: Tensor | None = None

    def on_grid(self) -> Tensor:
        """The weights of the tokens that stand on the grid, without those that do not (CLS): [C, N, H, Q, T, R, W].

        Raises:
            ValueError: when they stand on none.
        """
        if self.grid is None:
            raise ValueError("this encoder's tokens stand on no known grid; use weights_CNHQTS")
        return self.weights_CNHQTS[..., self.grid]


@torch.no_grad()
def cross_attention(bridge: Bridge, media_NT: Tensor) -> AttentionMaps:
    """Attention of a bridge's queries over media [N, T, ...], in every layer that looks at the encoder's tokens.

    Raises:
        ValueError: for a projector without such layers.
    """
    layers = getattr(bridge.projector, "cross_attentions", {})
    if not layers:
        raise ValueError(f"{type(bridge.projector).__name__} has no queries that look at tokens: nothing to show")
    with captured(list(layers.values())) as maps:
        bridge(media_NT)
    weights_CNHQTS = torch.stack(maps).unflatten(-1, (media_NT.shape[1], -1))
    return AttentionMaps(weights_CNHQTS, tuple(layers), token_grid(bridge.encoder, tuple(media_NT.shape[2:])))


@contextmanager
def captured(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """While it is open, the list receives the probabilities [N, H, Q, S] of each of these modules
    (`qformer.QFormerAttention`) that runs, in running order."""
    maps: list[Tensor] = []
    handles = [module.register_forward_pre_hook(lambda m, inputs: maps.append(_probabilities(m, *inputs)))
               for module in modules]  # fmt: skip
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def _probabilities(module: Any, x: Tensor, tokens: Tensor, bias: Tensor | None) -> Tensor:
    q, k = (
        module.self[name](source).unflatten(-1, (module.heads, -1)).transpose(1, 2)
        for name, source in (("query", x), ("key", tokens))
    )
    scores = q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores if bias is None else scores + bias).softmax(-1)
