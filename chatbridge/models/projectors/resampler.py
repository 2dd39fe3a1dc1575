"""The Perceiver Resampler (Flamingo, arXiv 2204.14198, section 3.1.1), the model of ChatBridge's perceivers.

Shape letters: see `chatbridge.common.batch`; here S counts all tokens of a medium, Q its latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbridge.common.registry import PROJECTORS
from chatbridge.common.schema import key
from chatbridge.models.projectors.base import ProjectorConfig, redraw
from chatbridge.models.row_counts import TokenShape


@dataclass(kw_only=True)
class ResamplerConfig(ProjectorConfig):
    """Defaults: Flamingo's (appendix B.1), with GELU. Latents are as wide as tokens; see `encoder_width`."""

    num_queries: int = key(64, help="latents: rows that one medium becomes", low=1, high=4096)
    layers: int = key(6, help="layers of attention and feed-forward", low=1, high=512)
    heads: int = key(16, help="attention heads", low=1, high=1024)
    ffn_ratio: float = key(4.0, help="feed-forward width over token width", low=0.01, high=64.0)
    query_std: float = key(0.02, help="standard deviation of fresh latents", low=0.0, high=100.0)


@PROJECTORS.register("resampler", config=ResamplerConfig)
class ResamplerProjector(nn.Module):
    """Tokens [N, T, S, E] to rows [N, Q, D]: latents attend to the tokens of all frames and to each other.

    The paper's embeddings of time are the bridge's (`temporal_positions`).
    """

    may_differ = ("num_queries", "query_std", "encoder_width")

    def __init__(
        self, config: ResamplerConfig, token_width: int, llm_width: int, shared: ResamplerProjector | None = None
    ):
        super().__init__()
        if token_width % config.heads:
            raise ValueError(
                f"projector resampler: tokens of width {token_width} cannot be shared by {config.heads} heads; set "
                "heads, or encoder_width to a multiple of it"
            )
        self.query_tokens = nn.Parameter(config.query_std * torch.randn(1, config.num_queries, token_width))
        make = lambda: ResamplerLayer(token_width, config.heads, int(config.ffn_ratio * token_width))  # noqa: E731
        self.layers = shared.layers if shared else nn.ModuleList(make() for _ in range(config.layers))
        self.norm = shared.norm if shared else nn.LayerNorm(token_width)
        self.projection = shared.projection if shared else nn.Linear(token_width, llm_width)

    @staticmethod
    def rows(config: ResamplerConfig, tokens: TokenShape) -> int:
        return config.num_queries

    def forward(self, tokens_NTSE: Tensor, grid: Tensor | None = None) -> Tensor:
        tokens_NSE = tokens_NTSE.flatten(1, 2)
        x_NQE = self.query_tokens.expand(len(tokens_NSE), -1, -1)
        for layer in self.layers:
            x_NQE = layer(x_NQE, tokens_NSE)
        return self.projection(self.norm(x_NQE))

    def scale_rows(self, length: float) -> None:
        redraw(self.projection, length)


class ResamplerLayer(nn.Module):
    """Attention from latents to tokens and latents together, then feed-forward; norms in front of each."""

    def __init__(self, width: int, heads: int, ffn_width: int):
        super().__init__()
        self.heads = heads
        self.norm_tokens, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, ffn_width), nn.GELU(), nn.Linear(ffn_width, width)
        )

    def forward(self, x_NQE: Tensor, tokens_NSE: Tensor) -> Tensor:
        latents_NQE = self.norm_latents(x_NQE)
        seen = torch.cat([self.norm_tokens(tokens_NSE), latents_NQE], dim=1)
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.query(latents_NQE), *self.key_value(seen).chunk(2, dim=-1))
        )
        x_NQE = x_NQE + self.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x_NQE + self.feed_forward(x_NQE)
