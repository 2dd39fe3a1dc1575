"""The sizes that a model's cost depends on, read from the model itself, and the shapes of a step's batch.

Shape letters as in `chatbridge.common.batch`; F is the width of a feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import nn

from chatbridge.models.bridge import Bridge
from chatbridge.models.chatbridge import ChatBridge
from chatbridge.models.llm import CausalLM
from chatbridge.models.projectors import QFormerProjector
from chatbridge.models.rehearsal import EncoderStep, encoder_step
from chatbridge.planning.sharding import language_shards


@dataclass(frozen=True)
class MediaBatch:
    """Media of one modality in one rank's batch: `count` of them (N), of `steps` frames or clips (T) each."""

    count: float
    steps: int
    step_shape: tuple[int, ...]


@dataclass(frozen=True)
class BatchShape:
    """One rank's batch of one dataset.

    Attributes:
        samples: how many there are in it. length: of a row, L, BOS and padding included.
        supervised: positions with loss in the whole batch, K.
        media: by modality.
        rows: B; None gives each sample a row of its own, packed batches have fewer.
        masked: whether attention needs a mask of its own, as it does when samples differ in length or share rows.
    """

    samples: float
    length: float
    supervised: float
    media: Mapping[str, MediaBatch]
    rows: float | None = None
    masked: bool = True

    @property
    def positions(self) -> float:
        """B * L."""
        return (self.samples if self.rows is None else self.rows) * self.length


@dataclass(frozen=True)
class BridgeSizes:
    """Sizes of a bridge: encoder width and widest layer, token width E, perceiver and projection sizes, what trains."""

    name: str
    encoder_width: int
    encoder_widest: int
    encoder_half: bool
    token_width: int
    queries: int
    width: int
    layers: int
    cross_layers: int
    heads: int
    intermediate: int
    out: int
    dropout: bool
    adapter: bool
    adapter_trains: bool
    temporal: bool
    norm_trains: bool
    perceiver_trains: bool
    projection_trains: bool

    @property
    def tokens_need_grad(self) -> bool:
        """Whether the tokens that the queries look at are themselves computed by something that learns."""
        return self.norm_trains or self.adapter_trains or self.temporal


@dataclass(frozen=True)
class LanguageSizes:
    """Sizes of the language model: `linear` counts the numbers in matrices that every position goes through."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    linear: int
    gated: bool
    checkpointing: bool
    dtype: torch.dtype


class Geometry:
    """Sizes of a whole model, and the token counts of its encoders.

    Args:
        model: on any device; only shapes and types are read.
        amp: the mixed precision of the run: "bf16", "fp16", or None.
        every_branch: whether parameters of absent modalities get gradients, too, as they do with more than one process
            (`ChatBridge.every_branch`).

    Attributes:
        llm, shards: sizes of the language model, and its groups under fsdp. bridges: sizes by name.
    """

    def __init__(self, model: ChatBridge, amp: str | None, every_branch: bool = False):
        self.model, self.amp, self.every_branch = model, amp, every_branch
        self.llm = _language_sizes(model.llm)
        self.shards = language_shards(model.llm, self.llm.checkpointing)
        self.bridges = {name: _bridge_sizes(name, bridge) for name, bridge in model.bridges.items()}
        self._steps: dict[tuple[str, tuple[int, ...]], EncoderStep] = {}

    def bridge(self, modality: str) -> BridgeSizes:
        bridge = self.model.bridge_of(modality)
        return next(self.bridges[name] for name, b in self.model.bridges.items() if b is bridge)

    def absent(self, batch: BatchShape) -> list[BridgeSizes]:
        """Bridges whose parameters get gradients of zeros from a batch, for it has no media of theirs."""
        if not self.every_branch:
            return []
        used = {self.bridge(modality).name for modality in batch.media}
        return [sizes for name, sizes in self.bridges.items() if name not in used]

    def with_checkpointing(self, wanted: bool) -> Geometry:
        """The same model with ``model.llm.gradient_checkpointing`` set so."""
        other = copy(self)
        other.llm = replace(self.llm, checkpointing=wanted)
        other.shards = replace(self.shards, checkpointing=wanted)
        return other

    @property
    def language_bytes(self) -> int:
        """Bytes of a number where the language model computes."""
        return 2 if self.amp else self.llm.dtype.itemsize

    @property
    def perceiver_bytes(self) -> int:
        """Bytes of a number where the fp32 perceivers compute."""
        return 2 if self.amp else 4

    def encoder_step(self, modality: str, shape: tuple[int, ...]) -> EncoderStep:
        """Tokens and FLOPs of one frame or clip of that shape; raises ValueError as `models.rehearsal.encoder_step`."""
        name = self.bridge(modality).name
        if (name, shape) not in self._steps:
            bridge = self.model.bridges[name].config
            self._steps[name, shape] = encoder_step(name, bridge, f"processors.{modality}", (1, *shape))
        return self._steps[name, shape]


def _bridge_sizes(name: str, bridge: Bridge) -> BridgeSizes:
    c, projector = bridge.config.chosen, bridge.projector
    if not isinstance(projector, QFormerProjector):
        kind = type(projector).__name__
        raise ValueError(f"model.bridges.{name}: the cost of a {kind} cannot be told yet, only that of the qformer")
    linear = [m.out_features for m in bridge.encoder.modules() if isinstance(m, nn.Linear)]
    kinds = {p.dtype for p in bridge.encoder.parameters() if p.dim() > 1}
    return BridgeSizes(
        name=name,
        encoder_width=bridge.encoder.width,
        encoder_widest=max(linear, default=bridge.encoder.width),
        encoder_half=any(kind.itemsize == 2 for kind in kinds),
        token_width=bridge.token_width,
        queries=c.num_queries,
        width=c.width,
        layers=c.layers,
        cross_layers=len(range(0, c.layers, c.cross_attention_every)),
        heads=c.heads,
        intermediate=c.intermediate,
        out=projector.projection.out_features,
        dropout=c.dropout > 0,
        adapter=bridge.adapter is not None,
        adapter_trains=bridge.adapter is not None and _trains(bridge.adapter),
        temporal=bridge.temporal is not None,
        norm_trains=_trains(bridge.norm),
        perceiver_trains=projector.query_tokens.requires_grad,
        projection_trains=_trains(projector.projection),
    )


def _language_sizes(llm: CausalLM) -> LanguageSizes:
    config = llm.model.config
    heads = config.num_attention_heads
    tables = {id(m.weight) for m in llm.model.modules() if isinstance(m, nn.Embedding)}
    body = llm.model.base_model
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return LanguageSizes(
        width=llm.width,
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=head_dim,
        ffn=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocabulary=llm.vocab_size,
        linear=sum(p.numel() for p in body.parameters() if p.dim() > 1 and id(p) not in tables),
        gated=any(name.endswith("gate_proj.weight") for name, _ in body.named_parameters()),
        checkpointing=llm.gradient_checkpointing,
        dtype=llm.dtype,
    )


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())
