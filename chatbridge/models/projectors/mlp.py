"""A perceptron on every token, or after pooling (LLaVA-1.5, arXiv 2310.03744, section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbridge.common.registry import PROJECTORS
from chatbridge.common.schema import key
from chatbridge.models.projectors.base import ProjectorConfig, redraw
from chatbridge.models.row_counts import TokenShape


@dataclass(kw_only=True)
class MlpConfig(ProjectorConfig):
    """Defaults: LLaVA-1.5's two layers. A single one is a linear map, LLaVA's first form."""

    pool: str | int = key(
        "none",
        help="rows of a frame or clip: 'none' makes one of every token, 'mean' one of their mean, a number so many, "
        "of means over equal areas of the grid of tokens (where there is none, over equal runs)",
        low=1,
        high=1 << 16,
    )
    layers: int = key(2, help="linear layers, GELU between them", low=1, high=16)
    hidden: int | None = key(None, help="width between them; null: the language model's", low=1, high=1 << 18)

    def __post_init__(self) -> None:
        if isinstance(self.pool, str) and self.pool not in ("none", "mean"):
            raise ValueError(f"pool is 'none', 'mean' or a number of rows, not '{self.pool}'")


@PROJECTORS.register("mlp", config=MlpConfig)
class MlpProjector(nn.Module):
    """Tokens [N, T, S, E] to rows [N, T * S, D] or, pooled to n a frame, [N, T * n, D]."""

    may_differ = ("pool", "encoder_width")

    def __init__(self, config: MlpConfig, token_width: int, llm_width: int, shared: MlpProjector | None = None):
        super().__init__()
        self.pool = config.pool
        widths = [token_width, *[config.hidden or llm_width] * (config.layers - 1)]
        layers = [nn.Sequential(nn.Linear(a, b), nn.GELU()) for a, b in zip(widths, widths[1:], strict=False)]
        self.hidden = shared.hidden if shared else nn.Sequential(*layers)
        self.projection = shared.projection if shared else nn.Linear(widths[-1], llm_width)

    @staticmethod
    def rows(config: MlpConfig, tokens: TokenShape) -> int:
        if config.pool == "none":
            return tokens.frames * tokens.count
        return tokens.frames * (1 if config.pool == "mean" else config.pool)

    def forward(self, tokens_NTSE: Tensor, grid: Tensor | None = None) -> Tensor:
        if self.pool != "none":
            tokens_NTSE = pooled(tokens_NTSE, 1 if self.pool == "mean" else self.pool, grid)
        return self.projection(self.hidden(tokens_NTSE.flatten(1, 2)))

    @torch.no_grad()
    def scale_rows(self, length: float) -> None:
        tokens = torch.randn(256, self.hidden[0][0].in_features if len(self.hidden) else self.projection.in_features)
        redraw(self.projection, length, float(self.hidden(tokens).square().mean().sqrt()))


def pooled(tokens_NTSE: Tensor, count: int, grid: Tensor | None = None) -> Tensor:
    """Means of neighbouring tokens, `count` a frame: [N, T, count, E].

    On a grid they are taken over areas whose sides come closest to the grid's own; tokens that stand beside it (CLS)
    are left out, unless all are to become one.
    """
    x_MSE = tokens_NTSE.flatten(0, 1)
    if grid is None or count == 1:
        x_MES = F.adaptive_avg_pool1d(x_MSE.transpose(1, 2), count)
    else:
        rows, columns = grid.shape
        sides = [(n, count // n) for n in range(1, count + 1) if count % n == 0]
        side = min(sides, key=lambda s: abs(math.log(s[0] / s[1] * columns / rows)))
        image_MERC = x_MSE[:, grid.to(x_MSE.device)].permute(0, 3, 1, 2)
        x_MES = F.adaptive_avg_pool2d(image_MERC, side).flatten(2)
    return x_MES.transpose(1, 2).unflatten(0, tokens_NTSE.shape[:2])
