"""A perceiver: a bank of learned queries, and the Q-Former through which they look at encoder tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from chatbridge.common.schema import key
from chatbridge.models.qformer import QFormer


@dataclass(kw_only=True)
class PerceiverConfig:
    """Defaults: BLIP-2's Q-Former, as ChatBridge uses it."""

    num_queries: int = key(32, help="rows that one medium becomes", low=1, high=4096)
    width: int = key(768, help="width of queries and hidden states", low=1, high=1 << 16)
    layers: int = key(12, help="transformer layers", low=1, high=512)
    heads: int = key(12, help="attention heads", low=1, high=1024)
    intermediate: int = key(3072, help="width of the feed-forward layers", low=1, high=1 << 18)
    cross_attention_every: int = key(2, help="layers 0, n, 2n, ... look at the encoder's tokens", low=1)
    encoder_width: int | None = key(
        None, help="width of the tokens it looks at; null: the encoder's own", low=1, high=1 << 16
    )
    dropout: float = key(0.0, help="dropout in training; 0.1 for stage 2", low=0.0, high=1.0)
    init_std: float | None = key(
        0.02, help="standard deviation of fresh matrices; null: 1 / sqrt(inputs)", low=0.0, high=100.0
    )
    query_std: float = key(
        0.02, help="standard deviation of fresh queries; 0 is the original's audio bank", low=0.0, high=100.0
    )

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; choose one that is")


class Perceiver(nn.Module):
    """Tokens of one medium [N, S, E] to its query rows [N, Q, P].

    Args:
        config: sizes.
        encoder_width: E.
        qformer: one to share with another perceiver (published checkpoints have one for all modalities); None
            makes its own.

    Attributes:
        query_tokens: the bank, [1, Q, P], trainable.
    """

    def __init__(self, config: PerceiverConfig, encoder_width: int, qformer: QFormer | None = None):
        super().__init__()
        # A zero bank makes all queries equal, and layer norm at zero blows gradients up by 1e6: never the default.
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_queries, config.width))
        nn.init.normal_(self.query_tokens, std=config.query_std)
        self.qformer = qformer or QFormer(
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            intermediate=config.intermediate,
            encoder_width=encoder_width,
            cross_attention_every=config.cross_attention_every,
            dropout=config.dropout,
            init_std=config.init_std,
        )

    def forward(self, tokens_NSE: Tensor, mask_NS: Tensor | None = None) -> Tensor:
        return self.qformer(self.query_tokens.expand(len(tokens_NSE), -1, -1), tokens_NSE, mask_NS)


def unshareable(a: PerceiverConfig, b: PerceiverConfig) -> list[str]:
    """The keys that keep two perceivers from sharing one Q-Former (the banks may differ, and the token width that
    is left open is settled by the bridge)."""
    free = {"num_queries", "query_std", "init_std", "encoder_width"}
    return [f.name for f in fields(a) if f.name not in free and getattr(a, f.name) != getattr(b, f.name)]
