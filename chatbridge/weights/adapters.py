"""Names in published files, and names here. All of them, and nowhere else.

| original ChatBridge               | here                                                         |
|-----------------------------------|--------------------------------------------------------------|
| visual_encoder.*, audio_encoder.* | bridges.<visual, audio>.encoder.*                            |
| ln_vision.*, ln_audio.*           | bridges.<...>.norm.*                                         |
| audio_trans.*                     | bridges.<audio>.adapter.*                                    |
| visual_, audio_temporal_pos_embeds| bridges.<...>.temporal                                       |
| image_, audio_query_tokens        | bridges.<...>.perceiver.query_tokens                         |
| Qformer.*                         | bridges.<each>.perceiver.qformer.* (one module, when shared) |
| llama_proj.*                      | bridges.<each>.projection.* (one module, when shared)        |
| llama_model.*                     | llm.model.*                                                  |

The visual bridge is the one that serves images or video, the audio bridge the one that serves audio. EVA-ViT, BEATs
and LLaMA modules are named as in their published files, apart from what `eva_names` and `beats_names` mend.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chatbridge.weights.coverage import Reading, Target
from chatbridge.weights.files import Source
from chatbridge.weights.formats import EVA_PREFIXES, FORMATS

TABLE = "self_attn.relative_attention_bias.weight"
"""BEATs' table of relative positions: one tensor, which published files repeat in every layer."""

EVA_IGNORED = (r"(norm|fc_norm|head)\..*",)
"""What follows the blocks in a classifier or in CLIP."""

CLIP_IGNORED = (
    r"(text|transformer|token_embedding|ln_final)\..*",
    r"positional_embedding|text_projection|logit_scale|logit_bias",
)
"""CLIP's text side, beside a vision tower that has a prefix."""

BEATS_IGNORED = (r"predictor\..*",)
"""The classifier of fine-tuned files."""

LLAMA_IGNORED = (r".*rotary_emb\.inv_freq",)
"""Recomputed; old releases of transformers saved it."""

ORIGINAL_IGNORED = (r"Qformer\.bert\.embeddings\.position_ids",)
"""Of the Q-Former's text side."""

BLIP2_IGNORED = (
    *ORIGINAL_IGNORED,
    r"(t5_proj|opt_proj)\..*",
    r"Qformer\.cls\..*",
    r"Qformer\.bert\.embeddings\.(word|position)_embeddings\.weight",
    r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..*",
    r"(vision_proj|text_proj|itm_head)\..*",
    r"temp",
)
"""BLIP-2's projection into its own language model, and the Q-Former's text side with its heads."""

FROZEN_PARTS = ("visual_encoder.", "ln_vision.", "audio_encoder.", "ln_audio.", "llama_model.")
"""Parts that a dictionary of trainable tensors leaves out, each as a whole."""

TEMPORAL = ("visual_temporal_pos_embeds", "audio_temporal_pos_embeds")
"""Files made with multi_sample off have none; the embeddings then stay zero, which is the same function."""

VISUAL_PARTS = ("Qformer.", "image_query_tokens", "ln_vision.", "llama_proj.", "visual_encoder.", "llama_model.")
"""What BLIP-2 and MiniGPT-4 files may hold, under the original's names."""

BEATS_SETTINGS = {
    "patch_size": "input_patch_size", "patch_width": "embed_dim", "width": "encoder_embed_dim",
    "depth": "encoder_layers", "heads": "encoder_attention_heads", "ffn_width": "encoder_ffn_embed_dim",
    "conv_pos": "conv_pos", "conv_pos_groups": "conv_pos_groups", "num_buckets": "num_buckets",
    "max_distance": "max_distance", "deep_norm": "deep_norm",
}  # fmt: skip
"""Our configuration keys, and what the ``cfg`` of published BEATs files calls them."""

BEATS_NEEDED = {
    "layer_norm_first": False, "relative_position_embedding": True, "gru_rel_pos": True, "conv_bias": False,
    "activation_fn": "gelu",
}  # fmt: skip
"""The variant of BEATs that ChatBridge uses."""


def allowed(name: str, patterns: Iterable[str]) -> str | None:
    """The pattern that lets a tensor of this name be left out."""
    return next((pattern for pattern in patterns if re.fullmatch(pattern, name)), None)


def eva_names(reading: Reading, names: Iterable[str], depth: int, prefix: str = "") -> None:
    """EVA-ViT: tensors under `prefix`; blocks from `depth` on, the final norm and the head are not used."""
    blocks = 0
    for name in names:
        inner = name.removeprefix(prefix)
        if not name.startswith(prefix):
            pattern = allowed(name, CLIP_IGNORED)
        else:
            block = re.match(r"blocks\.(\d+)\.", inner)
            index = int(block.group(1)) if block else -1
            blocks = max(blocks, index + 1)
            pattern = f"blocks.{depth}... of a deeper file" if index >= depth else allowed(inner, EVA_IGNORED)
        if pattern:
            reading.ignored[name] = pattern
        else:
            reading.names[name] = inner
    if blocks < depth:
        reading.problems.append(
            f"the vision weights hold {blocks} blocks and depth is {depth}; lower depth or take others"
        )


def beats_names(reading: Reading, names: Iterable[str]) -> None:
    """BEATs: the repeated table once, weight norm under its old names, no classifier."""
    for name in names:
        pattern = allowed(name, BEATS_IGNORED)
        table = re.fullmatch(rf"encoder\.layers\.(\d+)\.{re.escape(TABLE)}", name)
        if pattern:
            reading.ignored[name] = pattern
        elif table and table.group(1) != "0":
            reading.copies[name] = f"encoder.layers.0.{TABLE}"
        else:
            reading.names[name] = old_weight_norm(name)


def old_weight_norm(name: str) -> str:
    """PyTorch's parametrised weight norm, under the names that BEATs was saved with."""
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        name = name.replace(f"pos_conv.0.parametrizations.weight.{new}", f"pos_conv.0.{old}")
    return name


def mend_beats(state: dict[str, Tensor], prefix: str = "") -> None:
    """The same for a state dict in memory, in place, before a module loads it.

    Raises:
        ValueError: when the copies of the table differ.
    """
    reading = Reading("", "")
    beats_names(reading, [name.removeprefix(prefix) for name in state if name.startswith(prefix)])
    for name, target in reading.names.items():
        if name != target:
            state[prefix + target] = state.pop(prefix + name)
    for name, own in reading.copies.items():
        copy = state.pop(prefix + name)
        if prefix + own in state and not torch.equal(copy, state[prefix + own]):
            layer = name.split(".")[2]
            raise ValueError(
                f"layers 0 and {layer} of the audio weights differ in {TABLE}; in BEATs all share one table"
            )


def beats_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Our configuration keys from the ``cfg`` of a published file.

    Raises:
        ValueError: when the architecture is one that ChatBridge does not use (pre-norm, no gate, ...).
    """
    for name, value in BEATS_NEEDED.items():
        if cfg.get(name, value) != value:
            raise ValueError(f"audio weights with {name}={cfg[name]!r} are not supported, only {value!r}")
    return {ours: cfg[theirs] for ours, theirs in BEATS_SETTINGS.items() if theirs in cfg}


def read_encoder(format: str, encoder: nn.Module, source: Source) -> Reading:
    """A file for an encoder of the format "eva_vit" or "beats"."""
    reading = Reading(FORMATS[format].title, FORMATS[format].slot)
    if format == "eva_vit":
        prefix = next(p for p in EVA_PREFIXES if any(n.startswith(f"{p}blocks.") for n in source.tensors))
        reading.format += {"": "", "visual.": " (EVA-CLIP)", "visual.trunk.": " (open_clip)"}[prefix]
        eva_names(reading, source.tensors, len(encoder.blocks), prefix)
        return reading
    beats_names(reading, source.tensors)
    cfg = source.extras.get("cfg")
    if isinstance(cfg, Mapping):  # what is no plain value equals none of ours
        cfg = {k: v if isinstance(v, (bool, int, float, str)) else type(v).__name__ for k, v in cfg.items()}
    reading.format += ", fine-tuned" if reading.ignored else ""
    if isinstance(cfg, Mapping):
        theirs = beats_settings(cfg)
        told = [f"{k} is {v} there and {getattr(encoder.config, k)} here" for k, v in theirs.items()
                if v != getattr(encoder.config, k)]  # fmt: skip
        if told:
            reading.problems.append(f"another architecture by its cfg: {', '.join(told)}")
    return reading


def read_llama(source: Source) -> Reading:
    """A language model's files; transformers' names are ours."""
    reading = Reading(FORMATS["llama"].title, FORMATS["llama"].slot)
    for name in source.tensors:
        pattern = allowed(name, LLAMA_IGNORED)
        if pattern:
            reading.ignored[name] = pattern
        else:
            reading.names[name] = name
    return reading


def read_checkpoint(format: str, model: nn.Module, source: Source) -> Reading:
    """A checkpoint of the original, of BLIP-2 or of MiniGPT-4, its targets named as the original's are."""
    reading = Reading(FORMATS[format].title, FORMATS[format].slot)
    patterns = ORIGINAL_IGNORED if format == "original" else BLIP2_IGNORED
    renamed = {}
    for name in source.tensors:
        inner = name.removeprefix("module.")
        pattern = allowed(inner, patterns)
        if pattern:
            reading.ignored[name] = pattern
        else:
            renamed[name] = "image_query_tokens" if inner == "query_tokens" else inner
    if "image_query_tokens" in source.tensors and "query_tokens" in source.tensors:
        renamed.pop("query_tokens")
        reading.ignored["query_tokens"] = "query_tokens beside image_query_tokens"
    encoders = {"visual_encoder.": bridge_of(model, "image", "video"), "audio_encoder.": bridge_of(model, "audio")}
    for prefix, bridge in encoders.items():
        own = {name: target for name, target in renamed.items() if target.startswith(prefix)}
        if own and bridge is not None:
            _read_inside(reading, own, prefix, bridge.encoder)
            renamed = {name: target for name, target in renamed.items() if name not in own}
    _read_inside(reading, {n: t for n, t in renamed.items() if t.startswith("llama_model.")}, "llama_model.", None)
    reading.names |= {n: t for n, t in renamed.items() if not t.startswith("llama_model.")}
    if format == "original":
        reading.optional = FROZEN_PARTS + TEMPORAL
        full = any(target.startswith("llama_model.") for target in reading.names.values())
        reading.format += ", full (language model inside)" if full else ", partial"
    else:
        needed = ("Qformer.", "image_query_tokens", "ln_vision.") if format == "blip2" else ()
        reading.optional = tuple(part for part in VISUAL_PARTS + TEMPORAL if part not in needed)
    return reading


def _read_inside(reading: Reading, names: dict[str, str], prefix: str, encoder: nn.Module | None) -> None:
    """A frozen part inside a checkpoint: `names` maps the file's names to ones that begin with `prefix`."""
    inner = Reading("", "")
    short = {target.removeprefix(prefix): name for name, target in names.items()}
    kind = getattr(encoder, "published_format", None)
    if encoder is None:
        for name in short:
            pattern = allowed(name, LLAMA_IGNORED)
            (inner.ignored if pattern else inner.names)[name] = pattern or name
    elif kind == "eva_vit":
        eva_names(inner, short, len(encoder.blocks))
    elif kind == "beats":
        beats_names(inner, short)
    else:
        inner.names = {name: name for name in short}
    reading.names |= {short[name]: prefix + target for name, target in inner.names.items()}
    reading.ignored |= {short[name]: pattern for name, pattern in inner.ignored.items()}
    reading.copies |= {short[name]: short[own] for name, own in inner.copies.items() if own in short}
    reading.problems += inner.problems


def bridge_of(model: nn.Module, *modalities: str) -> nn.Module | None:
    """The bridge that serves the first of these modalities that the model knows."""
    known = [m for m in modalities if m in model.queries]
    return model.bridge_of(known[0]) if known else None


def module_targets(module: nn.Module, prefix: str = "") -> dict[str, Target]:
    """The persistent tensors of a module by name; an encoder may bring some to its shape (`resamplers`)."""
    fits = getattr(module, "resamplers", {})
    tensors = module.state_dict(keep_vars=True)
    return {prefix + name: Target([tensor], fits.get(name)) for name, tensor in tensors.items()}


def original_targets(model: nn.Module, visual_only: bool = False) -> dict[str, Target]:
    """Original name -> the tensors here that it fills: one, or one per bridge that has its own.

    Args:
        visual_only: leave the audio bridge out, unless it shares its parts (files that have seen pictures only).
    """
    visual, audio = bridge_of(model, "image", "video"), bridge_of(model, "audio")
    foreign = [n for n, b in model.bridges.items() if b is not visual and b is not audio]
    if foreign and not visual_only:
        raise ValueError(f"the original has no modality for bridge {', '.join(foreign)}; save it in our own format")
    if visual is not None and visual.adapter is not None:
        raise ValueError("the original has no adapter before the perceiver of images and video; remove it")
    parts: list[tuple[str, nn.Module | nn.Parameter | None]] = []
    for bridge, encoder, norm, temporal, queries, adapter in (
        (visual, "visual_encoder", "ln_vision", "visual_temporal_pos_embeds", "image_query_tokens", ""),
        (None if visual_only else audio, "audio_encoder", "ln_audio", "audio_temporal_pos_embeds",
         "audio_query_tokens", "audio_trans"),
    ):  # fmt: skip
        if bridge is None:
            continue
        parts += [(encoder, bridge.encoder), (norm, bridge.norm), (adapter, bridge.adapter)]
        parts += [(temporal, bridge.temporal), (queries, bridge.perceiver.query_tokens)]
        parts += [("Qformer", bridge.perceiver.qformer), ("llama_proj", bridge.projection)]
    parts.append(("llama_model", model.llm.model))
    targets: dict[str, Target] = {}
    for name, part in parts:
        if part is None:
            continue
        found = {name: Target([part])} if isinstance(part, nn.Parameter) else module_targets(part, f"{name}.")
        for full, target in found.items():
            places = targets.setdefault(full, target).places
            if not any(target.places[0] is other for other in places):
                places.append(target.places[0])
    return targets


def trainable_names(model: nn.Module) -> list[str]:
    """Original names of the tensors that train."""
    return [name for name, target in original_targets(model).items() if target.places[0].requires_grad]


def to_original(model: nn.Module, full: bool = False) -> dict[str, Tensor]:
    """The state dict under original names: what trains, or all of it (`full`, with the repeated bucket tables).

    Raises:
        ValueError: when bridges hold different perceivers or projections, which the original cannot.
    """
    out: dict[str, Tensor] = {}
    for name, target in original_targets(model).items():
        if not full and name.startswith(FROZEN_PARTS):
            continue
        first, *others = target.places
        if any(not torch.equal(first, other) for other in others):
            raise ValueError(f"bridges differ in {name}; the original has one for all: train with share_perceivers")
        out[name] = first.detach()
    first_table = f"audio_encoder.encoder.layers.0.{TABLE}"
    if first_table in out:
        layers = {m.group(1) for m in (re.match(r"audio_encoder\.encoder\.layers\.(\d+)\.", k) for k in out) if m}
        out |= {f"audio_encoder.encoder.layers.{i}.{TABLE}": out[first_table] for i in layers}
    return out
