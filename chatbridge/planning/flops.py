"""Floating-point operations of a step, by component. Every formula is derived in docs/planning.md.

A multiplication with its addition counts as two operations. Only matrix products and convolutions are counted, as
PyTorch's counter does; norms, activations and softmax are below a per cent of them. Attention is counted over the whole
square, padding and the future included, which is what the kernels compute for right-padded batches with a mask.
"""

from __future__ import annotations

from dataclasses import dataclass

from chatbridge.planning.geometry import BatchShape, BridgeSizes, Geometry


@dataclass(frozen=True)
class Work:
    """Operations of one component in one rank's batch; `half` where they run in half precision."""

    forward: float
    backward: float
    half: bool

    @property
    def total(self) -> float:
        return self.forward + self.backward

    def __add__(self, other: Work) -> Work:
        return Work(self.forward + other.forward, self.backward + other.backward, self.half and other.half)


def batch_work(geometry: Geometry, batch: BatchShape) -> dict[str, Work]:
    """Component -> operations of one rank's forward and backward pass."""
    work: dict[str, Work] = {}
    for modality, media in batch.media.items():
        sizes = geometry.bridge(modality)
        step = geometry.encoder_step(modality, media.step_shape)
        encoder = Work(media.count * media.steps * step.flops, 0.0, sizes.encoder_half or geometry.amp is not None)
        perceiver = perceiver_work(sizes, media.count, media.steps * step.tokens, geometry.amp is not None)
        for part, done in ((f"{sizes.name} encoder", encoder), (f"{sizes.name} perceiver", perceiver)):
            work[part] = work[part] + done if part in work else done
    absent = geometry.absent(batch)
    learns = any(_learns(sizes) for sizes in (*(geometry.bridge(modality) for modality in batch.media), *absent))
    work["language model"] = language_work(geometry, batch, learns)
    work["logits"] = logits_work(geometry, batch, learns)
    return work


def perceiver_work(sizes: BridgeSizes, count: float, tokens: float, half: bool) -> Work:
    """Adapter, Q-Former and projection for `count` media of `tokens` encoder tokens (T * S) each."""
    b, q, p, e = sizes, sizes.queries, sizes.width, sizes.token_width
    adapter = 2.0 * tokens * b.encoder_width * e if b.adapter else 0.0
    # Matrix products whose input comes from the queries; those whose input is the encoder's tokens; attention.
    own = b.layers * (2 * q * 4 * p * p + 4 * q * p * b.intermediate) + b.cross_layers * 2 * q * 2 * p * p
    keys = b.cross_layers * 2 * tokens * 2 * e * p
    attention = b.layers * 4 * q * q * p + b.cross_layers * 4 * q * tokens * p
    projection = 2.0 * q * p * b.out
    forward = adapter + own + keys + attention + projection
    weights = b.perceiver_trains
    inputs = weights or b.tokens_need_grad
    backward = own * (weights + inputs) + keys * (weights + b.tokens_need_grad) + attention * 2 * inputs
    backward += projection * (b.projection_trains + inputs)
    backward += adapter * (b.adapter_trains + (b.norm_trains and inputs))
    return Work(count * forward, count * backward, half)


def language_work(geometry: Geometry, batch: BatchShape, learns: bool = True) -> Work:
    """The frozen language model's body: back through its activations, never to its weights."""
    llm = geometry.llm
    positions = batch.positions
    linear = 2.0 * positions * llm.linear
    attention = 4.0 * positions * batch.length * llm.heads * llm.head_dim * llm.layers
    forward = linear + attention
    backward = linear + 2 * attention
    if llm.checkpointing:  # once more forward, but for a layer's last product: nothing of it is needed to go back
        backward += forward - 2.0 * positions * llm.layers * llm.width * llm.ffn
    return Work(forward, backward * learns, geometry.language_bytes == 2)


def logits_work(geometry: Geometry, batch: BatchShape, learns: bool = True) -> Work:
    """The head, at supervised positions only."""
    forward = 2.0 * batch.supervised * geometry.llm.width * geometry.llm.vocabulary
    return Work(forward, forward * learns, geometry.language_bytes == 2)


def _learns(sizes: BridgeSizes) -> bool:
    return sizes.projection_trains or sizes.perceiver_trains or sizes.tokens_need_grad
