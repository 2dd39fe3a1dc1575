"""Reading weights into models: detect the format, compare every name and shape, then fill all or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from chatbridge.weights.coverage import Coverage, NameMapping, Target, compare
from chatbridge.weights.files import WeightsError, WeightSource, open_weights, shorten
from chatbridge.weights.filling import fill
from chatbridge.weights.formats import FORMATS, LANGUAGE, WHOLE, article, detect, format_of, wrong_slot
from chatbridge.weights.name_mapping import (
    current_name,
    module_targets,
    original_targets,
    read_checkpoint,
    read_encoder,
    read_llama,
)

LoadPlan = tuple[Coverage, NameMapping, WeightSource, Mapping[str, Target]]


def load_encoder(encoder: nn.Module, path: str | Path) -> Coverage:
    """Fill an encoder from a published file, or from one of its own.

    Args:
        encoder: one that states its ``file_format`` (`chatbridge.contracts.Encoder`).

    Raises:
        WeightsError: when the file is of another kind, does not fit, or is damaged; nothing is loaded then.
    """
    what = f"{encoder.file_format.slot.split()[0]} weights '{path}'"
    return _carry_out(encoder, what, plan_encoder(encoder, open_weights(path), what))


def plan_encoder(encoder: nn.Module, source: WeightSource, what: str) -> LoadPlan:
    """What `load_encoder` would do."""
    wanted, found = encoder.file_format, detect(source.tensors)
    if format_of(found) != wanted:
        raise WeightsError(_not_this(what, source, found, wanted.slot))
    mapping = read_encoder(encoder, source)
    targets = module_targets(encoder)
    return compare(mapping, source, targets), mapping, source, targets


def load_language_model(model: nn.Module, source: WeightSource) -> Coverage:
    """Fill a transformers model, built on the meta device, from its opened folder, shard by shard."""
    what = f"language model '{source.path}'"
    return _carry_out(model, what, plan_language_model(model, source, what))


def plan_language_model(model: nn.Module, source: WeightSource, what: str) -> LoadPlan:
    """What `load_language_model` would do."""
    found = detect(source.tensors)
    if format_of(found).refusal and found != "unknown" or format_of(found).slot not in ("", LANGUAGE):
        raise WeightsError(_not_this(what, source, found, LANGUAGE))
    mapping, targets = read_llama(source), module_targets(model)
    learning = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    if len(learning) < len(list(model.parameters())):  # beside what is frozen, it adds something of its own (LoRA)
        mapping.optional = learning
    return compare(mapping, source, targets), mapping, source, targets


def load_checkpoint(model: nn.Module, path: str | Path) -> Coverage:
    """Start `model` from a checkpoint: ours (folder or safetensors), the original's, BLIP-2's or MiniGPT-4's.

    Raises:
        WeightsError: when it cannot be read or does not fit, naming it and every tensor concerned.
    """
    what = f"checkpoint '{path}'"
    return _carry_out(model, what, plan_checkpoint(model, open_weights(path), what))


def plan_checkpoint(model: nn.Module, source: WeightSource, what: str, kind: str | None = None) -> LoadPlan:
    """What `load_checkpoint` would do."""
    kind = kind or detect(source.tensors)
    if format_of(kind).slot != WHOLE or format_of(kind).refusal:
        raise WeightsError(_not_this(what, source, kind, WHOLE))
    if kind == "chatbridge":
        return plan_own(model, source)
    targets = original_targets(model, visual_only=kind != "original")
    mapping = read_checkpoint(kind, model, source)
    coverage = compare(mapping, source, targets)
    if any("audio_trans." in name for name in coverage.unexpected) and "audio_trans.weight" not in targets:
        coverage.problems.append("for audio_trans set the audio bridge's adapter to 'always'")
    if any("temporal_pos" in name for name in coverage.unexpected):
        coverage.problems.append("for temporal embeddings set the bridges' temporal_positions")
    return coverage, mapping, source, targets


def plan_own(model: nn.Module, source: WeightSource, whole: bool = False) -> LoadPlan:
    """A checkpoint under our own names: all that trains, and frozen parts each as a whole or (`whole`) all of it."""
    targets = module_targets(model)
    mapping = _own_mapping(source)
    if not whole:
        trains = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
        frozen = [f"bridges.{name}.{part}." for name in model.bridges for part in ("encoder", "norm")] + ["llm."]
        mapping.optional = tuple(part for part in frozen if not any(name.startswith(part) for name in trains))
        others = {name for name in targets if name not in trains and not name.startswith(mapping.optional)}
        mapping.optional += tuple(sorted(others - set(mapping.names.values())))
    coverage = compare(mapping, source, targets)
    coverage.verdict = "is of another architecture"
    return coverage, mapping, source, targets


def _own_mapping(source: WeightSource) -> NameMapping:
    kind = FORMATS["chatbridge"]
    return NameMapping(kind.title, kind.slot, {name: current_name(name) for name in source.tensors})


def load_original(model: nn.Module, state: Mapping[str, Tensor], where: str = "original checkpoint") -> list[str]:
    """Fill `model` from an original state dict in memory, full or without (some of) the frozen parts.

    Bridges that do not share their perceivers all start from the one that the original has.

    Returns:
        The names on the format's allow-list that were met.

    Raises:
        WeightsError: listing every missing, unexpected and misshapen tensor by its original name.
    """
    return _load_state(model, state, where, "original")


def load_blip2(model: nn.Module, state: Mapping[str, Tensor], where: str = "BLIP-2 weights") -> list[str]:
    """Fill the vision bridge's Q-Former, queries and norm from a BLIP-2 state dict; the rest stays as it is.

    Returns, raises: as `load_original`.
    """
    return _load_state(model, state, where, "blip2")


def load_trainable(model: nn.Module, state: Mapping[str, Tensor], where: str) -> Coverage:
    """Fill exactly the tensors that train, by our own names, from memory."""
    source = WeightSource.of(state, where)
    targets = {name: Target([parameter]) for name, parameter in model.named_parameters() if parameter.requires_grad}
    mapping = _own_mapping(source)
    coverage = compare(mapping, source, targets)
    coverage.verdict = "is of another architecture"
    return _carry_out(model, where, (coverage, mapping, source, targets))


def _load_state(model: nn.Module, state: Mapping[str, Tensor], where: str, kind: str) -> list[str]:
    coverage = _carry_out(model, where, plan_checkpoint(model, WeightSource.of(state, where), where, kind))
    return list(coverage.ignored)


def _carry_out(module: nn.Module, what: str, plan: LoadPlan) -> Coverage:
    coverage, mapping, source, targets = plan
    coverage.require(what)
    fill(module, mapping, source, targets, what)
    return coverage


def _not_this(what: str, source: WeightSource, found: str, slot: str) -> str:
    if found == "unknown":
        names = shorten(source.tensors, 3) or "no tensors"
        return f"{what} is not {article(slot)} that ChatBridge knows: it holds {names}"
    return wrong_slot(what, found, slot)
