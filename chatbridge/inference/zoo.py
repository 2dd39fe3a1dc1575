"""Models by name, for notebooks: the functions that LAVIS users know, over this project's YAML files.

`chatbridge.models` offers them, too, and imports this file when one of them is asked for.
"""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import chatbridge
from chatbridge.common.config import LoadedConfig
from chatbridge.common.config_files import read_merged
from chatbridge.common.read_mode import EVALUATION, Training
from chatbridge.common.registry import MODELS, nearest
from chatbridge.common.schema import ConfigError
from chatbridge.inference.attachments import MediaSource, as_source
from chatbridge.inference.engine import load_for_chat, pick_device
from chatbridge.runners.assembly import Assembly

FOLDER = "eval_configs"

Processors = dict[str, dict[str, Callable[[MediaSource], Tensor]]]
"""Modality -> "train" and "eval" -> from a file, bytes or a picture in memory to a tensor [T, ...]."""


def config_folders() -> list[Path]:
    """Where configurations of models are looked for, first come first served: below the working folder, beside the
    package (a checkout), and where a wheel puts them."""
    package = Path(chatbridge.__file__).parent.parent
    places = [Path.cwd() / FOLDER, package / FOLDER, Path(sysconfig.get_path("data")) / "share" / "chatbridge" / FOLDER]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


class ModelZoo:
    """What can be loaded by name: architectures, and for each its types: configuration files, without their ending."""

    @property
    def models(self) -> dict[str, dict[str, Path]]:
        """Architecture -> type -> its file."""
        found: dict[str, dict[str, Path]] = {}
        for folder in config_folders():
            for file in sorted(folder.glob("*.yaml")):
                architecture = _architecture(file)
                if architecture is not None:
                    found.setdefault(architecture, {}).setdefault(file.stem, file)
        return found

    def find(self, name: str, model_type: str | None = None) -> Path:
        """The configuration of a model; `name` may be a file itself.

        Raises:
            ValueError: when there is none, with the nearest known name.
        """
        if Path(name).suffix in (".yaml", ".yml"):
            return Path(name)
        models = self.models
        if not models:
            raise ValueError(f"no folder {FOLDER}/ with models was found here; give the path of a YAML as name")
        if name not in models:
            raise ValueError(f"no architecture is called '{name}'; {nearest(name, list(models))}")
        if model_type not in models[name]:
            raise ValueError(f"'{name}' has no type '{model_type}'; {nearest(str(model_type), list(models[name]))}")
        return models[name][model_type]

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        return iter((architecture, list(types)) for architecture, types in self.models.items())

    def __len__(self) -> int:
        return sum(len(types) for types in self.models.values())

    def __str__(self) -> str:
        lines = [f"{'Architecture':<20} Types", "=" * 60]
        return "\n".join([*lines, *(f"{architecture:<20} {', '.join(types)}" for architecture, types in self)])

    __repr__ = __str__


model_zoo = ModelZoo()


def load_model(
    name: str,
    model_type: str | None = None,
    is_eval: bool = False,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
) -> nn.Module:
    """A model with its weights.

    Args:
        name: an architecture of `model_zoo`, or the path of a YAML.
        model_type: its type. is_eval: in eval mode; else as training has it.
        checkpoint: starts from this one instead of those that the YAML names under ``model.weights``.

    Raises:
        ValueError: an unknown name, or a configuration or weights that cannot be used.
    """
    return _load(load_for_chat(model_zoo.find(name, model_type), checkpoint), is_eval, device)


def load_model_and_preprocess(
    name: str,
    model_type: str | None = None,
    is_eval: bool = False,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
) -> tuple[nn.Module, Processors, dict[str, Callable[[str], str]]]:
    """A model, what turns media into its inputs, and what cleans text for it.

    Unlike LAVIS's, the second of these has one level more: ``processors["image"]["eval"](file)``. Arguments and errors
    are those of `load_model`.
    """
    loaded = load_for_chat(model_zoo.find(name, model_type), checkpoint)
    return (_load(loaded, is_eval, device), *load_preprocess(loaded))


def load_preprocess(config: str | Path | LoadedConfig) -> tuple[Processors, dict[str, Callable[[str], str]]]:
    """The processors of a configuration (a file, or one that was loaded), as `load_model_and_preprocess` gives them."""
    assembly = Assembly(load_for_chat(config))
    media = {modality: {"train": _reader(one, True), "eval": _reader(one, False)}
             for modality, one in assembly.processors.items()}  # fmt: skip
    clean = getattr(assembly.task, "clean", str)  # instructions are read as they stand
    return media, {"train": clean, "eval": clean}


def _load(loaded: LoadedConfig, is_eval: bool, device: str | torch.device) -> nn.Module:
    where = pick_device(device)
    return Assembly(loaded).model(where).to(where).train(not is_eval)


def _reader(processor: Any, training: bool) -> Callable[[MediaSource], Tensor]:
    mode = Training(random.Random()) if training else EVALUATION
    return lambda source: processor.load(as_source(source), mode)


def _architecture(file: Path) -> str | None:
    """The architecture that a YAML names; None for one that describes no model."""
    try:
        model = read_merged(file)[0].get("model")
    except ConfigError:
        return None
    return str(model.get(MODELS.tag, MODELS.usual)) if isinstance(model, dict) else None
