"""Names in files of whole models and of language models, and names here. All of them, and nowhere else.

| original ChatBridge               | here                                                         |
|-----------------------------------|--------------------------------------------------------------|
| visual_encoder.*, audio_encoder.* | bridges.<visual, audio>.encoder.*                            |
| ln_vision.*, ln_audio.*           | bridges.<...>.norm.*                                         |
| audio_trans.*                     | bridges.<audio>.adapter.*                                    |
| visual_, audio_temporal_pos_embeds| bridges.<...>.temporal                                       |
| image_, audio_query_tokens        | bridges.<...>.projector.query_tokens                         |
| Qformer.*                         | bridges.<each>.projector.qformer.* (one module, when shared) |
| llama_proj.*                      | bridges.<each>.projector.projection.* (likewise)             |
| llama_model.*                     | llm.model.*                                                  |

The visual bridge is the one that serves images or video, the audio bridge the one that serves audio. LLaMA
modules are named as in their files; what those of an encoder are called here, it says itself (`contracts.Encoder`).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from chatbridge.weights.coverage import NameMapping, Target, allowed
from chatbridge.weights.files import WeightSource, shorten
from chatbridge.weights.formats import FORMATS

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


def read_encoder(encoder: nn.Module, source: WeightSource) -> NameMapping:
    """A file for an encoder that states the format of its files."""
    mapping = NameMapping(encoder.file_format.title, encoder.file_format.slot)
    encoder.read_names(mapping, source.tensors, source.extras)
    return mapping


def read_llama(source: WeightSource) -> NameMapping:
    """A language model's files; transformers' names are ours."""
    mapping = NameMapping(FORMATS["llama"].title, FORMATS["llama"].slot)
    for name in source.tensors:
        pattern = allowed(name, LLAMA_IGNORED)
        if pattern:
            mapping.ignored[name] = pattern
        else:
            mapping.names[name] = name
    return mapping


def read_checkpoint(kind: str, model: nn.Module, source: WeightSource) -> NameMapping:
    """A checkpoint of the original, of BLIP-2 or of MiniGPT-4, its targets named as the original's are."""
    mapping = NameMapping(FORMATS[kind].title, FORMATS[kind].slot)
    patterns = ORIGINAL_IGNORED if kind == "original" else BLIP2_IGNORED
    renamed = {}
    for name in source.tensors:
        inner = name.removeprefix("module.")
        pattern = allowed(inner, patterns)
        if pattern:
            mapping.ignored[name] = pattern
        else:
            renamed[name] = "image_query_tokens" if inner == "query_tokens" else inner
    if "image_query_tokens" in source.tensors and "query_tokens" in source.tensors:
        renamed.pop("query_tokens")
        mapping.ignored["query_tokens"] = "query_tokens beside image_query_tokens"
    for prefix, bridge in _encoders(model):
        own = {name: target for name, target in renamed.items() if target.startswith(prefix)}
        if own:
            _read_inside(mapping, own, prefix, bridge.encoder)
            renamed = {name: target for name, target in renamed.items() if name not in own}
    _read_inside(mapping, {n: t for n, t in renamed.items() if t.startswith("llama_model.")}, "llama_model.", None)
    mapping.names |= {n: t for n, t in renamed.items() if not t.startswith("llama_model.")}
    if kind == "original":
        mapping.optional = FROZEN_PARTS + TEMPORAL
        full = any(target.startswith("llama_model.") for target in mapping.names.values())
        mapping.kind += ", full (language model inside)" if full else ", partial"
    else:
        needed = ("Qformer.", "image_query_tokens", "ln_vision.") if kind == "blip2" else ()
        mapping.optional = tuple(part for part in VISUAL_PARTS + TEMPORAL if part not in needed)
    return mapping


def _read_inside(mapping: NameMapping, names: dict[str, str], prefix: str, encoder: nn.Module | None) -> None:
    """A frozen part inside a checkpoint: `names` maps the file's names to ones that begin with `prefix`."""
    inner = NameMapping("", "")
    short = {target.removeprefix(prefix): name for name, target in names.items()}
    if encoder is None:
        for name in short:
            pattern = allowed(name, LLAMA_IGNORED)
            (inner.ignored if pattern else inner.names)[name] = pattern or name
    elif hasattr(encoder, "read_names"):
        encoder.read_names(inner, short, {})
    else:
        inner.names = {name: name for name in short}
    mapping.names |= {short[name]: prefix + target for name, target in inner.names.items()}
    mapping.ignored |= {short[name]: pattern for name, pattern in inner.ignored.items()}
    mapping.copies |= {short[name]: short[own] for name, own in inner.copies.items() if own in short}
    mapping.problems += inner.problems


def bridge_of(model: nn.Module, *modalities: str) -> nn.Module | None:
    """The bridge that serves the first of these modalities that the model knows."""
    known = [m for m in modalities if m in model.rows]
    return model.bridge_of(known[0]) if known else None


def _encoders(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """What the original's names of encoders begin with, and the bridges that have them."""
    bridges = {"visual_encoder.": bridge_of(model, "image", "video"), "audio_encoder.": bridge_of(model, "audio")}
    return [(prefix, bridge) for prefix, bridge in bridges.items() if bridge is not None]


def _projector_parts(bridge: nn.Module) -> list[tuple[str, nn.Module | nn.Parameter]]:
    if not hasattr(bridge.projector, "original_parts"):
        kind = type(bridge.projector).__name__
        raise ValueError(f"the original's projector is the qformer; it has no {kind}; keep to our format")
    return list(bridge.projector.original_parts.items())


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
        parts.append((temporal, bridge.temporal))
        parts += [(queries if name == "query_tokens" else name, part) for name, part in _projector_parts(bridge)]
    targets: dict[str, Target] = {}
    for name, part in parts:
        if part is None:
            continue
        found = {name: Target([part])} if isinstance(part, nn.Parameter) else module_targets(part, f"{name}.")
        for full, target in found.items():
            places = targets.setdefault(full, target).places
            if not any(target.places[0] is other for other in places):
                places.append(target.places[0])
    language = module_targets(model.llm.model, "llama_model.")  # without what this one adds to learn (LoRA)
    return targets | {name: target for name, target in language.items() if not target.places[0].requires_grad}


def current_name(name: str) -> str:
    """A tensor of our own checkpoints by its present name: projectors used to be two modules of a bridge."""
    name = re.sub(r"^(bridges\.\w+)\.perceiver\.", r"\1.projector.", name)
    return re.sub(r"^(bridges\.\w+)\.projection\.", r"\1.projector.projection.", name)


def to_original(model: nn.Module, full: bool = False) -> dict[str, Tensor]:
    """The state dict under original names: what trains, or all of it (`full`, with the repeated bucket tables).

    Raises:
        ValueError: when bridges hold different projectors, or the language model learns, which the original cannot.
    """
    learning = [name for name, parameter in model.llm.named_parameters() if parameter.requires_grad]
    if learning:
        raise ValueError(
            f"the original's language model is frozen, here {shorten(learning, 1)} learns; keep to our format"
        )
    out: dict[str, Tensor] = {}
    for name, target in original_targets(model).items():
        if not full and name.startswith(FROZEN_PARTS):
            continue
        first, *others = target.places
        if any(not torch.equal(first, other) for other in others):
            raise ValueError(f"bridges differ in {name}; the original has one for all: train with share_perceivers")
        out[name] = first.detach()
    for prefix, bridge in _encoders(model):
        copies = getattr(bridge.encoder, "copies", dict)()
        out |= {prefix + name: out[prefix + own] for name, own in copies.items() if prefix + own in out}
    return out
