"""What ``python -m chatbridge.weights inspect`` says about a file, by the code that loads it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chatbridge.common.checkpoint import resolve_checkpoint
from chatbridge.common.documents import read_yaml
from chatbridge.common.registry import ENCODERS, MODELS
from chatbridge.common.schema import Binder, ConfigError
from chatbridge.weights.coverage import Coverage
from chatbridge.weights.files import WeightsError, WeightSource, open_weights
from chatbridge.weights.filling import checked
from chatbridge.weights.formats import LANGUAGE, article, detect, encoder_formats, format_of
from chatbridge.weights.language_model import check_vocabulary, describe, read_config, tokenizer_size
from chatbridge.weights.loading import LoadPlan, plan_checkpoint, plan_encoder, plan_language_model
from chatbridge.weights.pretrained import inspect_pretrained, is_pretrained
from chatbridge.weights.reference import published_encoder, published_language_model, published_model


def inspect(
    path: str | Path, model: nn.Module | None = None, part: nn.Module | None = None, whole: bool = True
) -> Coverage:
    """What a file or folder is and how far it fills `model` (None: the published architecture). Nothing is loaded.

    Never raises for a bad file: what is wrong stands under `Coverage.problems`.

    Args:
        part: the part of `model` that the file has to be for (an encoder, the transformers model, or `model` itself
            for a checkpoint); None takes the part that the file is made for.
        whole: look at every value, too, and compare checksums.
    """
    path = Path(path).expanduser()
    try:
        if part is None and path.is_dir() and is_pretrained(path):
            return inspect_pretrained(path)
        source = open_weights(path, whole)
        coverage, mapping, source, _ = _plan(path, source, model, part)
        if coverage.ok and whole:
            for _ in checked(mapping, source, f"'{path}'"):
                pass
    except ConfigError as error:
        return Coverage(str(path), "not usable", "", problems=error.problems)
    except (ValueError, OSError) as error:
        return Coverage(str(path), "not usable", "", problems=[str(error)])
    return coverage


def inspect_config(config: Any) -> list[tuple[str, Coverage]]:
    """Every weight file that a ``model:`` section names, each held against the very part that it is named for.

    Returns:
        (key, coverage), in the order in which a run reads them.
    """
    with torch.device("meta"):
        model = MODELS.build(config)
    found = []
    language = getattr(config.llm, "path", None)
    if language and not getattr(config.llm, "random_weights", False):
        found.append(("llm.path", inspect(language, model, model.llm.model)))
    for name, bridge in config.bridges.items():
        if getattr(bridge.encoder, "weights", None):
            found.append((f"bridges.{name}.encoder.weights", _inspect_encoder(bridge.encoder, whole=True)))
    return found + [(f"weights[{i}]", inspect(path, model, model)) for i, path in enumerate(config.weights)]


def weight_problems(config: Any, model: nn.Module | None, awaited: Callable[[str], bool]) -> list[str]:
    """What keeps the files that a ``model:`` section names from filling their parts, by names and shapes alone.

    Args:
        model: of this section, on the meta device; without it checkpoints are left alone.
        awaited: whether something is not there yet whose key begins so.
    """
    found = []
    for name, bridge in getattr(config, "bridges", {}).items():
        key = f"model.bridges.{name}.encoder.weights"
        if getattr(bridge.encoder, "weights", None) and not awaited(key):
            found.append((key, _inspect_encoder(bridge.encoder, whole=False)))
    if model is not None and not awaited("model."):
        for i, path in enumerate(getattr(config, "weights", [])):
            found.append((f"model.weights[{i}]", inspect(path, model, model, whole=False)))
    return [f"{key}: {coverage.complaint}" for key, coverage in found if not coverage.ok]


def _inspect_encoder(config: Any, whole: bool) -> Coverage:
    """The weights of an encoder. Only one from outside the package knows how it reads them: it is built."""
    with torch.device("meta"):
        encoder = ENCODERS.build(replace(config, weights=None))
    if hasattr(encoder, "file_format"):
        return inspect(config.weights, None, encoder, whole)
    coverage = Coverage(str(config.weights), "for an encoder from outside the package", "encoder")
    try:
        ENCODERS.build(config)
    except Exception as error:
        coverage.problems.append(f"'{config.weights}': {' '.join(str(error).split()) or type(error).__name__}")
    return coverage


def _plan(path: Path, source: WeightSource, model: nn.Module | None, part: nn.Module | None) -> LoadPlan:
    kind, what = detect(source.tensors), f"'{path}'"
    slot = format_of(kind).slot
    if part is not None and hasattr(part, "file_format"):
        return plan_encoder(part, source, what)
    if part is not None and part is model:
        return plan_checkpoint(model, source, what)
    if part is not None or slot == LANGUAGE and not format_of(kind).refusal:
        language = part if part is not None else _language_model_for(path, model)
        plan = plan_language_model(language, source, what)
        if path.is_dir():
            plan[0].kind = describe(read_config(path))
            plan[0].problems += _beside(path, source)
        return plan
    if kind in encoder_formats():
        encoder = published_encoder(kind) if model is None else _encoder_of(model, kind, what)
        return plan_encoder(encoder, source, what)
    if model is None:
        model = _own_model(path) if kind == "chatbridge" else published_model(source.tensors)
    return plan_checkpoint(model, source, what)


def _encoder_of(model: nn.Module, kind: str, what: str) -> nn.Module:
    wanted = format_of(kind)
    found = [b.encoder for b in model.bridges.values() if getattr(b.encoder, "file_format", None) == wanted]
    if not found:
        raise WeightsError(f"{what} is {article(wanted.title)}, and this model has none")
    return found[0]


def _language_model_for(path: Path, model: nn.Module | None) -> nn.Module:
    if model is not None:
        return model.llm.model
    if not path.is_dir():
        raise WeightsError(f"'{path}' is one file of a language model; name its folder")
    return published_language_model(read_config(path)).model


def _own_model(path: Path) -> nn.Module:
    """The model that the config.yaml beside a checkpoint describes."""
    file = resolve_checkpoint(path) / "config.yaml"
    advice = f"'{path}' is a checkpoint of this project; name its configuration (--cfg-path)"
    if not os.path.isfile(file):
        raise WeightsError(advice)
    try:
        tree = read_yaml(file)
        if not isinstance(tree, dict):
            raise WeightsError(f"{file}: is no configuration")
        binder = Binder(str(file), file.parent)  # weights that are no longer there do not matter
        config = binder.component(MODELS, tree.get("model"), "model")
        if binder.problems:
            raise WeightsError(binder.problems[0])
        with torch.device("meta"):
            return MODELS.build(config)
    except Exception as error:  # of a configuration of others
        raise WeightsError(f"{advice}: {' '.join(str(error).split()) or type(error).__name__}") from None


def _beside(folder: Path, source: WeightSource) -> list[str]:
    """What is wrong with the tokenizer in a language model's folder."""
    table = source.tensors.get("model.embed_tokens.weight")
    if table is None or table.dim() != 2 or not folder.is_dir():
        return []
    problems = []
    vocab_size = read_config(folder).get("vocab_size")
    if vocab_size != len(table):
        problems.append(f"config.json says {vocab_size} tokens, the table has {len(table)}")
    try:
        tokens = tokenizer_size(folder)
        if tokens is not None:
            check_vocabulary(tokens, len(table), folder, folder)
    except WeightsError as error:
        problems.append(str(error))
    return problems
