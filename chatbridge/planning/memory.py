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
    perceivers_kept,
    recomputed_layer,
    weight_copies,
)
from chatbridge.planning.geometry import BatchShape, BridgeSizes, Geometry
from chatbridge.planning.inventory import Inventory
from chatbridge.planning.sharding import Sharding

CONTEXT_BYTES = 1.0e9
"""Assumed, not computed: what the driver, libraries and communication take outside PyTorch's allocator."""


@dataclass(frozen=True)
class Resident:
    """Bytes per GPU that are there throughout.

    Attributes:
        weights, buffers, optimiser: what is kept on the GPU of each.
        buckets: the reducer's, where there is more than one process.
        gradients: those outside buckets when a step ends; with more than one process they are views of the buckets by
            then, but not before the last of the batches that a step accumulates.
        learnt: what trains, and hence all gradients, and the optimiser's temporary copy.
        pinned: host memory of a node that is locked for offloaded weights.
        building: host memory of a node for the one copy of the language model that is cut into pieces.
    """

    weights: float
    buffers: float
    optimiser: float
    buckets: float
    gradients: float
    learnt: float
    pinned: float = 0.0
    building: float = 0.0

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
        gathered: fsdp's layers that are whole or on their way, at most.
        encode, backward, update: the three moments, without what is always there; the second begins with the last
            layers' forward pass.
        moment: the name of the largest.
    """

    activations: float
    converted: float
    logits: float
    media: float
    encoder: float
    workspace: float
    gathered: float
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
        geometry: None for a model that is not understood, all of whose weights are taken to be everywhere.
        optimiser: "adamw" keeps two numbers for each that learns; "muon" one for matrices, which it moves, and two for
            the rest, which AdamW moves; None for a run that trains nothing.
    """
    learnt = inventory.trainable_bytes if optimiser else 0
    states = 2 * learnt - (inventory.matrix_bytes if optimiser == "muon" else 0)
    weights, pinned, building = float(inventory.parameter_bytes), 0.0, 0.0
    if sharding.sharded and geometry is not None:
        shards, world = geometry.shards, sharding.world
        weights += shards.whole - shards.total + (0 if sharding.offload else shards.kept(world))
        pinned = shards.pinned(world) * world / sharding.nodes if sharding.offload else 0.0
        building = shards.total
    buckets, gradients = (learnt, 0.0) if sharding.world > 1 else (0.0, learnt)
    return Resident(weights, inventory.buffer_bytes, states, buckets, gradients, learnt, pinned, building)


def step_memory(geometry: Geometry, batch: BatchShape, always: Resident, sharding: Sharding) -> StepMemory:
    """What a step of one dataset needs on top of what is always there."""
    llm, s = geometry.llm, geometry.language_bytes
    media_bytes = encoder = 0.0
    for modality, media in batch.media.items():
        steps = media.count * media.steps
        tokens = geometry.encoder_step(modality, media.step_shape).tokens
        media_bytes += 4.0 * steps * math.prod(media.step_shape)
        encoder = max(encoder, steps * tokens * _encoder_token(geometry.bridge(modality), geometry.amp is not None))
    positions = batch.positions
    embeddings = positions * llm.width * llm.dtype.itemsize
    learnt_copies, converted = weight_copies(geometry, batch)
    perceivers = perceivers_kept(geometry, batch)
    activations = perceivers + language_activations(geometry, batch) + learnt_copies + embeddings
    layer = positions * ((3 if llm.gated else 2) * llm.ffn * s + 12 * llm.width) + recomputed_layer(geometry, batch)
    loss = 3 * logits_kept(geometry, batch)  # log-probabilities and two gradients, all in fp32
    held = always.learnt if sharding.accumulate > 1 else 0.0
    kept = activations + converted + media_bytes + held
    shards = geometry.shards
    at_loss, at_layer, at_forward = shards.at_loss(sharding), shards.at_layer(sharding), shards.at_forward(sharding)
    last = (language_activations(geometry, batch) + converted) / llm.layers  # not there when its layer is gathered
    return StepMemory(
        activations=activations,
        converted=converted,
        logits=loss,
        media=media_bytes,
        encoder=encoder,
        workspace=layer,
        gathered=max(at_loss, at_layer, at_forward),
        encode=held + media_bytes + max(encoder, shards.at_embedding(sharding)),
        backward=kept + max(loss + at_loss, layer + at_layer, at_forward - last),
        update=max(
            always.gradients + always.learnt, max(always.gradients, held) + perceivers + learnt_copies + media_bytes
        ),
    )


def _encoder_token(sizes: BridgeSizes, amp: bool) -> float:
    """Of one token inside the encoder: the fp32 residual and norm, one copy, the feed-forward layer before and after
    its activation."""
    s = 2 if sizes.encoder_half or amp else 4
    return 8 * sizes.encoder_width + s * sizes.encoder_width + 2 * s * sizes.encoder_widest
