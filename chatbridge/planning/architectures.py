"""The language model's architecture, where its folder may not be there yet.

Asked in this order: the ``config.json`` of ``model.llm.path``; what the user names (`--llm`); the table below, by the
folder's name. The table holds published sizes only, so that a plan of the published runs needs no download.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from chatbridge.common.registry import nearest
from chatbridge.models.folder import build, read_settings, settings_of
from chatbridge.models.llm import CausalLM, CausalLMConfig
from chatbridge.weights import DTYPES


def _llama(hidden: int, layers: int, heads: int, ffn: int, vocab: int, context: int, eps: float) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": eps,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }


_13B = (5120, 40, 40, 13824)
_7B = (4096, 32, 32, 11008)

PUBLISHED: dict[str, dict[str, Any]] = {
    f"vicuna-{name}-{version}": _llama(*size, vocab, context, eps)
    for name, size in (("7b", _7B), ("13b", _13B))
    for version, vocab, context, eps in (
        ("v0", 32001, 2048, 1e-6),
        ("v1.1", 32000, 2048, 1e-6),
        ("v1.3", 32000, 2048, 1e-6),
        ("v1.5", 32000, 4096, 1e-5),
    )
}
"""Folder name -> a transformers configuration (``model_type`` and its keys)."""


@dataclass(frozen=True)
class Architecture:
    """A language model's configuration, and where it was found (for the report)."""

    config: PretrainedConfig
    source: str


def find_architecture(config: CausalLMConfig, named: str | None = None) -> Architecture:
    """The architecture of the language model that a run's configuration names.

    Args:
        config: ``model.llm``.
        named: a name of `PUBLISHED`, or a ``config.json`` or the folder of one; for a folder that is not there.

    Raises:
        ValueError: when none of the three places knows it, with what to do.
    """
    folder = Path(config.path)
    if (folder / "config.json").is_file():
        return Architecture(read_settings(folder), str(folder / "config.json"))
    if named is not None:
        if named in PUBLISHED:
            return _published(named)
        path = Path(named)
        if (path / "config.json").is_file() or path.is_file():
            return Architecture(read_settings(path), str(path))
        hint = nearest(named, list(PUBLISHED))
        raise ValueError(f"--llm {named}: neither a published architecture nor a config.json; {hint}")
    if folder.name in PUBLISHED:
        return _published(folder.name)
    raise ValueError(
        f"model.llm.path: '{folder}' has no config.json, and no published architecture is called '{folder.name}': put "
        f"the model's config.json there, or name the architecture with --llm (known: {', '.join(PUBLISHED)})"
    )


def language_model_of(config: CausalLMConfig, architecture: Architecture, device: str = "meta") -> CausalLM:
    """The language model without its weights: on the meta device only shapes and types, elsewhere random numbers."""
    with torch.device(device):
        model = build(architecture.config, architecture.source, DTYPES[config.dtype], config.attention)
        return CausalLM(config, model)


def _published(name: str) -> Architecture:
    return Architecture(settings_of(PUBLISHED[name], name), f"the published architecture {name}")
