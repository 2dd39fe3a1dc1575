"""Bytes that the forward pass leaves behind for the backward pass, by component, derived in docs/planning.md.

The counts follow what each operation keeps: a matrix product keeps its input where its weights learn, and its weights
where its input does; attention keeps queries, keys, values and its output, a norm its input, an activation its input.
"""

from __future__ import annotations

import torch

from chatbridge.planning.geometry import BatchShape, BridgeSizes, Geometry

AMP_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def perceiver_activations(sizes: BridgeSizes, count: float, tokens: float, amp: bool) -> float:
    """Adapter, Q-Former and projection for `count` media of `tokens` encoder tokens (T * S) each."""
    b, p = sizes, sizes.width
    s = 2 if amp else 4
    rows = count * b.queries
    projection = rows * p * s if b.projection_trains else 0.0
    if not (b.perceiver_trains or b.tokens_need_grad):
        return projection
    norm = 4 * p + 8 + b.dropout * p  # an output block: the norm's input and statistics, the dropout's mask
    # Under autocast queries, keys and values each make a half-precision copy of an fp32 input; without it they share.
    attention = 4 * b.heads + norm
    own = b.layers * ((3 if amp else 1) * p * s + 4 * p * s + attention)
    cross = b.cross_layers * (p * s + 2 * p * s + attention)
    feed_forward = b.layers * (p * s + 2 * b.intermediate * s + norm)
    return projection + rows * (own + cross + feed_forward) + count * tokens * _token_bytes(b, s, amp)


def _token_bytes(b: BridgeSizes, s: int, amp: bool) -> float:
    """Of one encoder token: what adapter, norm and the keys and values of the cross-attention keep."""
    half_already = b.adapter and not b.temporal
    copies = 2 * b.cross_layers if amp and not half_already else 1
    kept = copies * b.token_width * s + b.cross_layers * 2 * b.width * s
    if b.adapter_trains:
        kept += b.encoder_width * s
    if b.norm_trains:
        kept += 4 * b.encoder_width + 8
    return kept


def language_activations(geometry: Geometry, batch: BatchShape) -> float:
    """The language model's body."""
    llm, s = geometry.llm, geometry.language_bytes
    positions = batch.positions
    norm = 4 * llm.width + 4  # RMS norm computes in fp32, whatever the model's precision
    mask = batch.masked * positions * batch.length * s
    attention = (4 * llm.head_dim * s + 4) * llm.heads
    layer = positions * (2 * norm + attention + (3 if llm.gated else 2) * llm.ffn * s) + mask
    if llm.checkpointing:
        return llm.layers * positions * llm.width * llm.dtype.itemsize + positions * norm
    return llm.layers * layer + positions * (norm + 2 * llm.head_dim * llm.dtype.itemsize)


def recomputed_layer(geometry: Geometry, batch: BatchShape) -> float:
    """With gradient checkpointing, the one layer whose activations exist again while it goes back."""
    llm, s = geometry.llm, geometry.language_bytes
    if not llm.checkpointing:
        return 0.0
    positions = batch.positions
    inner = 2 * (4 * llm.width + 4) + (4 * llm.head_dim * s + 4) * llm.heads + (3 if llm.gated else 2) * llm.ffn * s
    return positions * inner + batch.masked * positions * batch.length * s


def weight_copies(geometry: Geometry, batch: BatchShape) -> tuple[float, float]:
    """Half-precision copies of weights that autocast makes and keeps: (of what learns, of the language model).

    The second is zero where ``model.llm.dtype`` is the type that the run computes in; where it is not, every matrix of
    the language model is converted in every step, and the copy kept until the backward pass has used it.
    """
    if geometry.amp is None:
        return 0.0, 0.0
    used = [geometry.model.bridge_of(modality) for modality in batch.media]
    learnt = {id(p): p.numel() for bridge in used for p in bridge.parameters() if p.requires_grad and p.dim() > 1}
    banks = {id(bridge.projector.query_tokens) for bridge in used}
    own = 2.0 * sum(numbers for key, numbers in learnt.items() if key not in banks)
    llm = geometry.llm
    if llm.dtype == AMP_DTYPES[geometry.amp]:
        return own, 0.0
    matrices = llm.linear / (llm.layers if llm.checkpointing else 1) + llm.width * llm.vocabulary
    return own, 2.0 * matrices


def logits_kept(geometry: Geometry, batch: BatchShape) -> float:
    """What the loss keeps: log-probabilities in fp32 and targets."""
    return batch.supervised * (4 * geometry.llm.vocabulary + 8)


def perceivers_kept(geometry: Geometry, batch: BatchShape) -> float:
    """What all perceivers keep."""
    amp, kept = geometry.amp is not None, 0.0
    for modality, media in batch.media.items():
        tokens = media.steps * geometry.encoder_step(modality, media.step_shape).tokens
        kept += perceiver_activations(geometry.bridge(modality), media.count, tokens, amp)
    return kept


def saved_for_backward(geometry: Geometry, batch: BatchShape) -> float:
    """All that autograd keeps between forward and backward, weights excluded."""
    kept = perceivers_kept(geometry, batch) + language_activations(geometry, batch) + logits_kept(geometry, batch)
    return kept + sum(weight_copies(geometry, batch))
