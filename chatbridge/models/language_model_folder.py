"""A language model's folder as transformers lays it out: its configuration, its weights, where its texts end.

Nothing in such a folder runs. Python files beside the weights (``auto_map``) are for models that transformers does not
know, and those are refused; one that it knows is built by transformers' own code.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

from chatbridge.weights import WeightsError, empty_weights, load_language_model, on_meta, open_weights
from chatbridge.weights.files import shorten
from chatbridge.weights.filling import check_finite
from chatbridge.weights.language_model import read_config, read_object
from chatbridge.weights.loading import plan_language_model

logger = logging.getLogger("chatbridge")

OWN_NAMES = ("llama",)
"""Families whose files name tensors as their modules do, so that a difference is an error of the files."""

FAULTS = ("missing_keys", "unexpected_keys", "mismatched_keys")

MOST_BUFFER_BYTES = 2**30
"""Of tables that a model computes when it is built (positions); those of published models take a few megabytes."""


def read_settings(path: str | Path) -> PretrainedConfig:
    """The configuration of a folder, or of a ``config.json``.

    Raises:
        WeightsError: when there is none, or it is of no model that transformers knows.
    """
    return settings_of(read_config(path), path)


def settings_of(plain: Mapping[str, Any], where: str | Path) -> PretrainedConfig:
    """A transformers configuration from what a ``config.json`` holds.

    Raises:
        WeightsError: naming `where` it is from, when it is of no model that transformers knows.
    """
    plain, family = dict(plain), plain.get("model_type")
    code = plain.pop("auto_map", None)
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        problem = (
            f"model_type {family!r} is unknown to transformers" if "model_type" in plain else "it has no model_type"
        )
        advice = "; its own code (auto_map) is never run, take a model that transformers knows" if code else ""
        raise WeightsError(f"{_cannot_load(where)}: {problem}{advice}")
    if family == "mistral" and "layer_types" in plain:
        plain["model_type"] = family = "ministral"  # as transformers reads them: windows on some layers only
    if code:
        logger.info("%s: its own code (auto_map) is not run, transformers knows '%s' itself", where, family)
    with _told(where):
        return CONFIG_MAPPING[family].from_dict(plain)


def build(
    settings: PretrainedConfig,
    where: str | Path,
    dtype: torch.dtype,
    attention: str | None = None,
    empty: bool = False,
    held: int | None = None,
) -> nn.Module:
    """A model of this configuration with random weights, or (`empty`) with parameters without memory.

    Args:
        where: the configuration is from, for errors.
        held: parameters that the files hold which are to fill it; it must not have many more.

    Raises:
        WeightsError: when no model can be built by the configuration.
    """
    kwargs = {"dtype": dtype} | ({"attn_implementation": attention} if attention else {})
    with _told(where):
        if not on_meta():
            with torch.device("meta"):
                _check_sizes(AutoModelForCausalLM.from_config(settings, trust_remote_code=False, **kwargs), empty, held)
        with empty_weights(empty):
            return AutoModelForCausalLM.from_config(settings, trust_remote_code=False, **kwargs)


def load_folder(folder: Path, dtype: torch.dtype, attention: str, random_weights: bool = False) -> nn.Module:
    """The folder's model. On the meta device, or with `random_weights`, only its architecture. Raises WeightsError."""
    settings = read_settings(folder)
    if random_weights or on_meta():
        return build(settings, folder, dtype, attention)
    source = open_weights(folder)
    model = build(settings, folder, dtype, attention, empty=True, held=source.parameters)
    model.tie_weights()  # building without memory takes shared tensors apart
    if settings.model_type in OWN_NAMES or plan_language_model(model, source, f"language model '{folder}'")[0].ok:
        load_language_model(model, source)
        return model
    return _load_renamed(folder, settings, {"dtype": dtype, "attn_implementation": attention})


def end_tokens(folder: str | Path, settings: PretrainedConfig, rows: int) -> list[int]:
    """Ids that end a text: those of ``generation_config.json``, if it has any, else of the configuration.

    Args:
        rows: of the model's table; ids behind it can never be generated.

    Raises:
        WeightsError: for anything but an id or a list of them.
    """
    file = Path(folder) / "generation_config.json"
    given, where = getattr(settings, "eos_token_id", None), f"configuration of '{folder}'"
    if str(folder) and file.exists():
        plain = read_object(file)
        if plain.get("eos_token_id") is not None:
            given, where = plain["eos_token_id"], str(file)
    ids = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    wrong = [index for index in ids if isinstance(index, bool) or not isinstance(index, int)]
    if wrong:
        raise WeightsError(f"{where}: eos_token_id {given!r} is neither an id nor a list of ids")
    outside = [index for index in ids if not 0 <= index < rows]
    if outside:
        logger.warning("%s: eos_token_id %s is not among the model's %d ids and ends nothing", where, outside, rows)
    return [index for index in ids if index not in outside]


def _load_renamed(folder: Path, settings: PretrainedConfig, kwargs: dict[str, Any]) -> nn.Module:
    """A family whose files transformers renames while it reads them; what it could not place is an error here too."""
    with _told(folder):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, config=settings, local_files_only=True, output_loading_info=True, trust_remote_code=False,
            **kwargs,
        )  # fmt: skip
    wrong = [f"{kind.replace('_keys', '')}: {shorten(map(str, report[kind]))}" for kind in FAULTS if report.get(kind)]
    if wrong:
        raise WeightsError(f"language model '{folder}' does not fit its config.json: {'; '.join(wrong)}")
    for name, parameter in model.named_parameters():
        check_finite(name, parameter.detach(), f"language model '{folder}'")
    return model


def _check_sizes(model: nn.Module, empty: bool, held: int | None) -> None:
    """Refuse sizes that no machine holds, or the files do not, by the model on the meta device."""
    tables = sum(buffer.nbytes for buffer in model.buffers())
    weights = 0 if empty else sum(parameter.nbytes for parameter in model.parameters())
    if tables > MOST_BUFFER_BYTES or weights > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise WeightsError(f"its sizes ask for {(tables + weights) / 2**30:,.0f} GiB, more than there is")
    described = sum(parameter.numel() for parameter in model.parameters())
    if held is not None and described > 2 * held + 10**6:
        raise WeightsError(f"config.json describes {described:,} parameters, its files hold {held:,}")


@contextmanager
def _told(where: str | Path) -> Iterator[None]:
    """Whatever transformers makes of settings and files of others becomes one line that names them."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        advice = "; set model.llm.attention to eager" if "attention implementation" in reason else ""
        raise WeightsError(f"{_cannot_load(where)}: {reason}{advice}") from error


def _cannot_load(where: str | Path) -> str:
    return f"cannot load a causal language model from '{where}'"
