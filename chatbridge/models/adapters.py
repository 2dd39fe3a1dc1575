"""Names of the original ChatBridge's tensors, and ours; readers of published files.

| original                          | here                                                         |
|-----------------------------------|--------------------------------------------------------------|
| visual_encoder.*, audio_encoder.* | bridges.<visual, audio>.encoder.*                            |
| ln_vision.*, ln_audio.*           | bridges.<...>.norm.*                                         |
| audio_trans.*                     | bridges.<audio>.adapter.*                                    |
| visual_, audio_temporal_pos_embeds| bridges.<...>.temporal                                       |
| image_, audio_query_tokens        | bridges.<...>.perceiver.query_tokens                         |
| Qformer.*                         | bridges.<each>.perceiver.qformer.* (one module, when shared) |
| llama_proj.*                      | bridges.<each>.projection.* (one module, when shared)        |
| llama_model.*                     | llm.model.*                                                  |

The visual bridge is the one that serves images or video, the audio bridge the one that serves audio.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chatbridge.common.checkpoint import load_weights
from chatbridge.models.bridge import Bridge
from chatbridge.models.chatbridge import ChatBridge
from chatbridge.models.encoders.beats import TABLE
from chatbridge.models.weight_files import difference, read_weights

IGNORED = (
    r"llama_model\..*rotary_emb\.inv_freq",  # recomputed
    r"Qformer\.bert\.embeddings\.position_ids",  # of the text side
)
"""Original names that have no tensor here, and need none."""

BLIP2_IGNORED = (r"t5_proj\..*", r"opt_proj\..*", r"llm_proj\..*")
"""BLIP-2's projection into its own language model."""

FROZEN_PARTS = ("visual_encoder.", "ln_vision.", "audio_encoder.", "ln_audio.", "llama_model.")
"""Parts that a dictionary of trainable tensors leaves out as a whole."""


def load_checkpoint(model: ChatBridge, path: str | Path) -> None:
    """Start `model` from a checkpoint: one of ours (folder or safetensors), an original ``.pth``, or BLIP-2's.

    Raises:
        ValueError: when it cannot be read or does not fit, naming it and every tensor concerned.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".safetensors":
        state: dict[str, Any] = load_weights(path)
    else:
        state = read_weights(path)
        state = state.get("model", state)
    if any(name.startswith("bridges.") for name in state):
        model.load_trainable(state, where=f"checkpoint '{path}'")
    elif "query_tokens" in state:
        load_blip2(model, state, where=f"BLIP-2 weights '{path}'")
    else:
        load_original(model, state, where=f"original checkpoint '{path}'")


def load_original(model: ChatBridge, state: Mapping[str, Tensor], where: str = "original checkpoint") -> list[str]:
    """Fill `model` from an original state dict, full or without (some of) the frozen parts.

    Bridges that do not share their perceivers all start from the one that the original has.

    Returns:
        The names on the `IGNORED` list that were met.

    Raises:
        ValueError: listing every missing, unexpected and misshapen tensor by its original name.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    absent = tuple(p for p in FROZEN_PARTS if not any(name.startswith(p) for name in state))
    return _load(model, state, where, IGNORED, absent)


def load_blip2(model: ChatBridge, state: Mapping[str, Tensor], where: str = "BLIP-2 weights") -> list[str]:
    """Fill Q-Former, image queries and vision norm from a BLIP-2 checkpoint; the rest stays as it is.

    Returns, raises: as `load_original`.
    """
    state = dict(state)
    queries = state.pop("query_tokens")
    state.setdefault("image_query_tokens", queries)
    targets = original_targets(model)
    here = ("Qformer.", "image_query_tokens", "ln_vision.")
    absent = tuple(name for name in targets if not name.startswith(here))
    return _load(model, state, where, IGNORED + BLIP2_IGNORED, absent)


def to_original(model: ChatBridge, full: bool = False) -> dict[str, Tensor]:
    """The state dict under original names: what trains, or all of it (`full`, with the repeated bucket tables).

    Raises:
        ValueError: when bridges hold different perceivers or projections, which the original cannot.
    """
    out: dict[str, Tensor] = {}
    for name, tensors in original_targets(model).items():
        if not full and name.startswith(FROZEN_PARTS):
            continue
        if any(not torch.equal(tensors[0], other) for other in tensors[1:]):
            raise ValueError(f"bridges differ in {name}; the original has one for all: train with share_perceivers")
        out[name] = tensors[0].detach()
    first = f"audio_encoder.encoder.layers.0.{TABLE}"
    if first in out:
        layers = {m.group(1) for m in (re.match(r"audio_encoder\.encoder\.layers\.(\d+)\.", k) for k in out) if m}
        out |= {f"audio_encoder.encoder.layers.{i}.{TABLE}": out[first] for i in layers}
    return out


def trainable_names(model: ChatBridge) -> list[str]:
    """Original names of the tensors that train."""
    return [name for name, tensors in original_targets(model).items() if tensors[0].requires_grad]


def original_targets(model: ChatBridge) -> dict[str, list[Tensor]]:
    """Original name -> the tensors here that it fills: one, or one per bridge that has its own."""
    visual, audio = _bridge(model, "image", "video"), _bridge(model, "audio")
    foreign = [n for n, b in model.bridges.items() if b is not visual and b is not audio]
    if foreign:
        raise ValueError(f"the original has no modality for bridge {', '.join(foreign)}; save it in our own format")
    if visual is not None and visual.adapter is not None:
        raise ValueError("the original has no adapter before the perceiver of images and video; remove it")
    parts: list[tuple[str, nn.Module | nn.Parameter | None]] = []
    for bridge, encoder, norm, temporal, queries, adapter in (
        (visual, "visual_encoder", "ln_vision", "visual_temporal_pos_embeds", "image_query_tokens", ""),
        (audio, "audio_encoder", "ln_audio", "audio_temporal_pos_embeds", "audio_query_tokens", "audio_trans"),
    ):
        if bridge is None:
            continue
        parts += [(encoder, bridge.encoder), (norm, bridge.norm), (adapter, bridge.adapter)]
        parts += [(temporal, bridge.temporal), (queries, bridge.perceiver.query_tokens)]
        parts += [("Qformer", bridge.perceiver.qformer), ("llama_proj", bridge.projection)]
    parts.append(("llama_model", model.llm.model))
    targets: dict[str, list[Tensor]] = {}
    for name, part in parts:
        if part is None:
            continue
        tensors = {"": part} if isinstance(part, nn.Parameter) else part.state_dict(keep_vars=True)
        for inner, tensor in tensors.items():
            places = targets.setdefault(f"{name}.{inner}" if inner else name, [])
            if not any(tensor is other for other in places):
                places.append(tensor)
    return targets


def _bridge(model: ChatBridge, *modalities: str) -> Bridge | None:
    known = [m for m in modalities if m in model.queries]
    return model.bridge_of(known[0]) if known else None


@torch.no_grad()
def _load(
    model: ChatBridge, state: dict[str, Tensor], where: str, ignored: tuple[str, ...], absent: tuple[str, ...]
) -> list[str]:
    """Copy `state` into its targets; names that match `ignored` need none, targets below `absent` may go without."""
    met = [name for name in state if any(re.fullmatch(pattern, name) for pattern in ignored)]
    state = {name: tensor for name, tensor in state.items() if name not in set(met)}
    state = _fit_encoders(model, state)
    targets = original_targets(model)
    expected = {name: places[0] for name, places in targets.items() if not (absent and name.startswith(absent))}
    problems = difference(expected, state)
    if problems:
        hint = ""
        if any(n.startswith("audio_trans") for n in state) and "audio_trans.weight" not in targets:
            hint = "; for audio_trans set the audio bridge's adapter to 'always'"
        raise ValueError(f"{where} does not fit this model: {'; '.join(problems)}{hint}")
    for name, tensor in state.items():
        for place in targets[name]:
            place.copy_(tensor)
    return met


def _fit_encoders(model: ChatBridge, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Let the encoders bring their tensors to today's form: shared tables, weight-norm names, position grids."""
    for prefix, bridge in (
        ("visual_encoder.", _bridge(model, "image", "video")),
        ("audio_encoder.", _bridge(model, "audio")),
    ):
        if bridge is not None and hasattr(bridge.encoder, "fit_state"):
            bridge.encoder.fit_state(state, prefix)
    return state
