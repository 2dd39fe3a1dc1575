"""The published projector: learned queries, the Q-Former through which they look at the tokens, and a linear map.

The Q-Former (BLIP-2, arXiv 2301.12597, section 3.1) has its query side only: queries attend to each other in every
layer and to the encoder's tokens in every second one. Tensors are named as in the BLIP-2 checkpoints; the text side,
which ChatBridge never uses, does not exist here.

Shape letters: see `chatbridge.common.batch`; here S counts all the tokens that the queries look at.
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

EPS = 1e-12
"""Layer norm's epsilon, BERT's."""


@dataclass(kw_only=True)
class QFormerConfig(ProjectorConfig):
    """Defaults: BLIP-2's Q-Former, as ChatBridge uses it."""

    num_queries: int = key(32, help="rows that one medium becomes", low=1, high=4096)
    width: int = key(768, help="width of queries and hidden states", low=1, high=1 << 16)
    layers: int = key(12, help="transformer layers", low=1, high=512)
    heads: int = key(12, help="attention heads", low=1, high=1024)
    intermediate: int = key(3072, help="width of the feed-forward layers", low=1, high=1 << 18)
    cross_attention_every: int = key(2, help="layers 0, n, 2n, ... look at the encoder's tokens", low=1)
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


@PROJECTORS.register("qformer", config=QFormerConfig)
class QFormerProjector(nn.Module):
    """Tokens [N, T, S, E] to rows [N, Q, D], whatever T and S are.

    Attributes:
        query_tokens: the bank, [1, Q, P]; never shared.
    """

    may_differ = ("num_queries", "query_std", "init_std", "encoder_width")

    def __init__(self, config: QFormerConfig, token_width: int, llm_width: int, shared: QFormerProjector | None = None):
        super().__init__()
        # A zero bank makes all queries equal, and layer norm at zero blows gradients up by 1e6: never the default.
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_queries, config.width))
        nn.init.normal_(self.query_tokens, std=config.query_std)
        self.qformer = shared.qformer if shared else QFormer(
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            intermediate=config.intermediate,
            encoder_width=token_width,
            cross_attention_every=config.cross_attention_every,
            dropout=config.dropout,
            init_std=config.init_std,
        )  # fmt: skip
        self.projection = shared.projection if shared else nn.Linear(config.width, llm_width)

    @staticmethod
    def rows(config: QFormerConfig, tokens: TokenShape) -> int:
        return config.num_queries

    def forward(self, tokens_NTSE: Tensor, grid: Tensor | None = None) -> Tensor:
        queries_NQP = self.query_tokens.expand(len(tokens_NTSE), -1, -1)
        return self.projection(self.qformer(queries_NQP, tokens_NTSE.flatten(1, 2)))

    def scale_rows(self, length: float) -> None:
        redraw(self.projection, length)

    @property
    def cross_attentions(self) -> dict[int, nn.Module]:
        """Those of the layers that look at the encoder's tokens."""
        layers = enumerate(self.qformer.bert["encoder"]["layer"])
        return {number: layer.crossattention for number, layer in layers if layer.crossattention is not None}

    @property
    def original_parts(self) -> dict[str, nn.Module | nn.Parameter]:
        return {"query_tokens": self.query_tokens, "Qformer": self.qformer, "llama_proj": self.projection}


class QFormer(nn.Module):
    """Queries [N, Q, P] and encoder tokens [N, S, E] to [N, Q, P].

    Args:
        width: P. layers, heads, intermediate: depth, attention heads and feed-forward width.
        encoder_width: E. cross_attention_every: layers 0, n, 2n, ... look at the encoder's tokens.
        dropout: of attention weights and of every block's output.
        init_std: of fresh matrices; None for 1 / sqrt(inputs), which a narrow one learns much faster from.
    """

    def __init__(
        self,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        intermediate: int = 3072,
        encoder_width: int = 1408,
        cross_attention_every: int = 2,
        dropout: float = 0.0,
        init_std: float | None = 0.02,
    ):
        super().__init__()
        stack = nn.ModuleList(
            QFormerLayer(width, heads, intermediate, encoder_width if i % cross_attention_every == 0 else None, dropout)
            for i in range(layers)
        )
        # BLIP-2's names: bert.embeddings.LayerNorm, bert.encoder.layer.N...
        embeddings = nn.ModuleDict({"LayerNorm": nn.LayerNorm(width, eps=EPS)})
        self.bert = nn.ModuleDict({"embeddings": embeddings, "encoder": nn.ModuleDict({"layer": stack})})
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=init_std or module.in_features**-0.5)
                nn.init.zeros_(module.bias)

    def forward(self, queries_NQP: Tensor, tokens_NSE: Tensor, mask_NS: Tensor | None = None) -> Tensor:
        """`mask_NS` is 1 at tokens that may be looked at; None means all of them."""
        bias = None
        if mask_NS is not None:
            # The dtype's minimum rather than -inf: a row with nothing to look at stays finite, as in the original.
            low = torch.finfo(queries_NQP.dtype).min
            bias = torch.zeros(mask_NS.shape, dtype=queries_NQP.dtype, device=mask_NS.device)
            bias = bias.masked_fill(mask_NS == 0, low)[:, None, None, :]
        x = self.dropout(self.bert["embeddings"]["LayerNorm"](queries_NQP))
        for layer in self.bert["encoder"]["layer"]:
            x = layer(x, tokens_NSE, bias)
        return x


class QFormerLayer(nn.Module):
    """Self-attention, cross-attention (where the layer has one), feed-forward; post-norm."""

    def __init__(self, width: int, heads: int, intermediate: int, encoder_width: int | None, dropout: float):
        super().__init__()
        self.attention = QFormerAttention(width, width, heads, dropout)
        self.crossattention = None if encoder_width is None else QFormerAttention(width, encoder_width, heads, dropout)
        self.intermediate_query = nn.ModuleDict({"dense": nn.Linear(width, intermediate)})
        self.output_query = QFormerOutput(intermediate, width, dropout)

    def forward(self, x: Tensor, tokens_NSE: Tensor, bias: Tensor | None) -> Tensor:
        x = self.attention(x, x, None)
        if self.crossattention is not None:
            x = self.crossattention(x, tokens_NSE, bias)
        return self.output_query(F.gelu(self.intermediate_query["dense"](x)), x)


class QFormerAttention(nn.Module):
    """Multi-head attention from `x` to `tokens`, then projection, residual and norm."""

    def __init__(self, width: int, token_width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.p = heads, dropout
        self.self = nn.ModuleDict(
            {
                "query": nn.Linear(width, width),
                "key": nn.Linear(token_width, width),
                "value": nn.Linear(token_width, width),
            }
        )
        self.output = QFormerOutput(width, width, dropout)

    def forward(self, x: Tensor, tokens: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = (
            self.self[name](source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name, source in (("query", x), ("key", tokens), ("value", tokens))
        )
        if bias is not None:
            bias = bias.to(q.dtype).clamp_min(torch.finfo(q.dtype).min)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=self.p if self.training else 0.0)
        return self.output(y.transpose(1, 2).flatten(2), x)


class QFormerOutput(nn.Module):
    """Projection, residual, norm."""

    def __init__(self, width_in: int, width: int, dropout: float):
        super().__init__()
        self.dense = nn.Linear(width_in, width)
        self.LayerNorm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)
