"""Reading weights into models: detect the format, compare every name and shape, then fill all or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from chatbridge.weights.adapters import (
    current_name,
    module_targets,
    original_targets,
    read_checkpoint,
    read_encoder,
    read_llama,
)
from chatbridge.weights.coverage import Coverage, Reading, Target, compare
from chatbridge.weights.files import Source, WeightsError, open_weights, shorten
from chatbridge.weights.filling import fill
from chatbridge.weights.formats import FORMATS, LANGUAGE, WHOLE, article, detect, format_of, wrong_slot

Plan = tuple[Coverage, Reading, Source, Mapping[str, Target]]


def load_encoder(encoder: nn.Module, path: str | Path) -> Coverage:
    """Fill an encoder from a published file, or from one of its own.

    Args:
        encoder: one that states its ``file_format`` (`chatbridge.contracts.Encoder`).

    Raises:
        WeightsError: when the file is of another kind, does not fit, or is damaged; nothing is loaded then.
    """
    what = f"{encoder.file_format.slot.split()[0]} weights '{path}'"
    return _carry_out(encoder, what, plan_encoder(encoder, open_weights(path), what))


def plan_encoder(encoder: nn.Module, source: Source, what: str) -> Plan:
    """What `load_encoder` would do."""
    wanted, found = encoder.file_format, detect(source.tensors)
    if format_of(found) != wanted:
        raise WeightsError(_not_this(what, source, found, wanted.slot))
    reading = read_encoder(encoder, source)
    targets = module_targets(encoder)
    return compare(reading, source, targets), reading, source, targets


def load_language_model(model: nn.Module, source: Source) -> Coverage:
    """Fill a transformers model, built on the meta device, from its opened folder, shard by shard."""
    what = f"language model '{source.path}'"
    return _carry_out(model, what, plan_language_model(model, source, what))


def plan_language_model(model: nn.Module, source: Source, what: str) -> Plan:
    """What `load_language_model` would do."""
    found = detect(source.tensors)
    if format_of(found).refusal and found != "unknown" or format_of(found).slot not in ("", LANGUAGE):
        raise WeightsError(_not_this(what, source, found, LANGUAGE))
    reading, targets = read_llama(source), module_targets(model)
    learning = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    if len(learning) < len(list(model.parameters())):  # beside what is frozen, it adds something of its own (LoRA)
        reading.optional = learning
    return compare(reading, source, targets), reading, source, targets


def load_checkpoint(model: nn.Module, path: str | Path) -> Coverage:
    """Start `model` from a checkpoint: ours (folder or safetensors), the original's, BLIP-2's or MiniGPT-4's.

    Raises:
        WeightsError: when it cannot be read or does not fit, naming it and every tensor concerned.
    """
    what = f"checkpoint '{path}'"
    return _carry_out(model, what, plan_checkpoint(model, open_weights(path), what))


def plan_checkpoint(model: nn.Module, source: Source, what: str, format: str | None = None) -> Plan:
    """What `load_checkpoint` would do."""
    format = format or detect(source.tensors)
    if format_of(format).slot != WHOLE or format_of(format).refusal:
        raise WeightsError(_not_this(what, source, format, WHOLE))
    if format == "chatbridge":
        return plan_own(model, source)
    targets = original_targets(model, visual_only=format != "original")
    reading = read_checkpoint(format, model, source)
    coverage = compare(reading, source, targets)
    if any("audio_trans." in name for name in coverage.unexpected) and "audio_trans.weight" not in targets:
        coverage.problems.append("for audio_trans set the audio bridge's adapter to 'always'")
    if any("temporal_pos" in name for name in coverage.unexpected):
        coverage.problems.append("for temporal embeddings set the bridges' temporal_positions")
    return coverage, reading, source, targets


def plan_own(model: nn.Module, source: Source, whole: bool = False) -> Plan:
    """A checkpoint under our own names: all that trains, and frozen parts each as a whole or (`whole`) all of it."""
    targets = module_targets(model)
    reading = _own_reading(source)
    if not whole:
        trains = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
        frozen = [f"bridges.{name}.{part}." for name in model.bridges for part in ("encoder", "norm")] + ["llm."]
        reading.optional = tuple(part for part in frozen if not any(name.startswith(part) for name in trains))
        others = {name for name in targets if name not in trains and not name.startswith(reading.optional)}
        reading.optional += tuple(sorted(others - set(reading.names.values())))
    coverage = compare(reading, source, targets)
    coverage.verdict = "is of another architecture"
    return coverage, reading, source, targets


def _own_reading(source: Source) -> Reading:
    format = FORMATS["chatbridge"]
    return Reading(format.title, format.slot, {name: current_name(name) for name in source.tensors})


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
    source = Source.of(state, where)
    targets = {name: Target([parameter]) for name, parameter in model.named_parameters() if parameter.requires_grad}
    reading = _own_reading(source)
    coverage = compare(reading, source, targets)
    coverage.verdict = "is of another architecture"
    return _carry_out(model, where, (coverage, reading, source, targets))


def _load_state(model: nn.Module, state: Mapping[str, Tensor], where: str, format: str) -> list[str]:
    coverage = _carry_out(model, where, plan_checkpoint(model, Source.of(state, where), where, format))
    return list(coverage.ignored)


def _carry_out(module: nn.Module, what: str, plan: Plan) -> Coverage:
    coverage, reading, source, targets = plan
    coverage.require(what)
    fill(module, reading, source, targets, what)
    return coverage


def _not_this(what: str, source: Source, found: str, slot: str) -> str:
    if found == "unknown":
        names = shorten(source.tensors, 3) or "no tensors"
        return f"{what} is not {article(slot)} that ChatBridge knows: it holds {names}"
    return wrong_slot(what, found, slot)
