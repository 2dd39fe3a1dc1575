"""Peak memory of one GPU, by kind and by the moment at which it is needed. Formulas: docs/planning.md.

What a step holds changes as it goes: the encoders' work space is free again when the language model runs, and the
gradients are made when most activations are gone. The peak is the largest of three moments, on top of what is always
there; adding all kinds up would promise too much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from chatbridge.planning.activations import (
    language_activations,
    logits_kept,
    perceiver_activations,
    recomputed_layer,
    weight_copies,
)
from chatbridge.planning.geometry import BatchShape, BridgeSizes, Geometry
from chatbridge.planning.inventory import Inventory

STRATEGIES = ("ddp", "fsdp")

CONTEXT_BYTES = 1.0e9
"""Assumed, not computed: what the driver, libraries and communication take outside PyTorch's allocator."""


@dataclass(frozen=True)
class Sharding:
    """How a strategy spreads what is always there over the processes.

    Attributes:
        strategy: "ddp" keeps everything on every GPU; "fsdp" keeps 1/world of weights, gradients and optimiser state,
            and gathers one layer of the language model and the next one at a time.
        world: processes. accumulate: micro-batches per step.
    """

    strategy: str = "ddp"
    world: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"run.strategy: '{self.strategy}' is not one of {', '.join(STRATEGIES)}")
        if self.world < 1:
            raise ValueError(f"at least one GPU is needed, not {self.world}")

    @property
    def share(self) -> float:
        """The part of sharded things that one process keeps."""
        return 1.0 / self.world if self.strategy == "fsdp" else 1.0


@dataclass(frozen=True)
class Resident:
    """Bytes per GPU that are there throughout (gradients: from the first backward pass of a step on)."""

    weights: float
    buffers: float
    optimiser: float
    buckets: float
    gradients: float

    @property
    def always(self) -> float:
        return self.weights + self.buffers + self.optimiser + self.buckets


@dataclass(frozen=True)
class StepMemory:
    """Bytes per GPU of one dataset's step.

    Attributes:
        activations: kept for the backward pass, autocast's copies of learnt weights included.
        converted: copies of the language model's weights in another precision; 0 where none are needed.
        logits: those in fp32, their log-probabilities and gradients.
        media: pixels and filter banks. encoder: work space of the encoders.
        workspace: gradients of activations while the last layer goes back.
        encode, backward, update: the three moments, without what is always there.
        moment: the name of the largest.
    """

    activations: float
    converted: float
    logits: float
    media: float
    encoder: float
    workspace: float
    encode: float
    backward: float
    update: float

    @property
    def moment(self) -> str:
        moments = {"encode": self.encode, "backward": self.backward, "update": self.update}
        return max(moments, key=moments.__getitem__)

    @property
    def peak(self) -> float:
        return max(self.encode, self.backward, self.update)


def resident(
    inventory: Inventory, geometry: Geometry | None, sharding: Sharding, optimiser: str | None = "adamw"
) -> Resident:
    """What is always there.

    Args:
        optimiser: "adamw" keeps two numbers for each that learns; "muon" one for matrices, which it moves, and two for
            the rest, which AdamW moves; None for a run that trains nothing.
    """
    learnt = inventory.trainable_bytes if optimiser else 0
    states = 2 * learnt - (inventory.matrix_bytes if optimiser == "muon" else 0)
    weights = inventory.parameter_bytes * sharding.share
    if sharding.strategy == "fsdp" and geometry is not None and sharding.world > 1:
        weights += 2 * geometry.llm.linear / geometry.llm.layers * geometry.llm.dtype.itemsize
    # DDP's reducer has a second copy of the gradients, in buckets.
    buckets = learnt if sharding.strategy == "ddp" and sharding.world > 1 else 0.0
    return Resident(weights, inventory.buffer_bytes, states * sharding.share, buckets, learnt * sharding.share)


def step_memory(geometry: Geometry, batch: BatchShape, always: Resident, sharding: Sharding) -> StepMemory:
    """What a step of one dataset needs on top of what is always there."""
    llm, s = geometry.llm, geometry.language_bytes
    perceivers = media_bytes = encoder = 0.0
    for modality, media in batch.media.items():
        sizes = geometry.bridge(modality)
        steps = media.count * media.steps
        tokens = geometry.encoder_step(modality, media.step_shape).tokens
        perceivers += perceiver_activations(sizes, media.count, media.steps * tokens, geometry.amp is not None)
        media_bytes += 4.0 * steps * math.prod(media.step_shape)
        encoder = max(encoder, steps * tokens * _encoder_token(sizes, geometry.amp is not None))
    positions = batch.positions
    embeddings = positions * llm.width * llm.dtype.itemsize
    learnt_copies, converted = weight_copies(geometry, batch)
    activations = perceivers + language_activations(geometry, batch) + learnt_copies + embeddings
    layer = positions * ((3 if llm.gated else 2) * llm.ffn * s + 12 * llm.width) + recomputed_layer(geometry, batch)
    loss = 3 * logits_kept(geometry, batch)  # log-probabilities and two gradients, all in fp32
    held = always.gradients if sharding.accumulate > 1 else 0.0
    kept = activations + converted + media_bytes + held
    return StepMemory(
        activations=activations,
        converted=converted,
        logits=loss,
        media=media_bytes,
        encoder=encoder,
        workspace=layer,
        encode=held + media_bytes + encoder,
        backward=kept + max(loss, layer),
        update=always.gradients + max(always.gradients, perceivers + learnt_copies + media_bytes),
    )


def _encoder_token(sizes: BridgeSizes, amp: bool) -> float:
    """Of one token inside the encoder: the fp32 residual and norm, one copy, the feed-forward layer before and after
    its activation."""
    s = 2 if sizes.encoder_half or amp else 4
    return 8 * sizes.encoder_width + s * sizes.encoder_width + 2 * s * sizes.encoder_widest
