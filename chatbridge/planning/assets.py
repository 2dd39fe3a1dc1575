"""Weight files that are there, held against the parts they are named for. Only names and shapes are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chatbridge.models.chatbridge import ChatBridge
from chatbridge.weights import open_weights
from chatbridge.weights.coverage import Coverage
from chatbridge.weights.readers import plan_checkpoint, plan_encoder, plan_language_model


def weight_problems(config: Any, model: ChatBridge) -> list[str]:
    """What would keep the run from loading the weight files that exist; those that do not are reported elsewhere.

    Args:
        config: the ``model:`` section. model: of it, on any device.
    """
    problems = []
    for key, path, look in _named(config, model):
        if path is None or not Path(path).exists():
            continue
        try:
            coverage = look(path)
        except (ValueError, OSError) as error:
            problems += [f"model.{key}: {line}" for line in str(error).splitlines()]
            continue
        if not coverage.ok:
            problems.append(f"model.{key}: '{path}' {coverage.verdict}: {coverage.complaint}")
    return problems


def _named(config: Any, model: ChatBridge) -> Iterator[tuple[str, str | None, Callable[[str], Coverage]]]:
    """(key, path, how to compare it) of every weight file of a configuration, in the order of loading."""
    if not getattr(config.llm, "random_weights", True):
        language = model.llm.model
        yield "llm.path", config.llm.path, lambda p: plan_language_model(language, open_weights(p), f"'{p}'")[0]
    for name, bridge in config.bridges.items():
        encoder = model.bridges[name].encoder
        if hasattr(encoder, "file_format"):
            path = getattr(bridge.encoder, "weights", None)
            key = f"bridges.{name}.encoder.weights"
            yield key, path, lambda p, e=encoder: plan_encoder(e, open_weights(p), f"'{p}'")[0]
    for index, path in enumerate(config.weights):
        yield f"weights[{index}]", path, lambda p: plan_checkpoint(model, open_weights(p), f"'{p}'")[0]
