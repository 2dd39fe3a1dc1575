"""The model that is planned: built on the meta device, so that neither weights nor memory are needed.

Where the language model's folder holds no ``config.json`` yet, its architecture is what the user names (``--llm``), or
a published one of the folder's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from chatbridge.common.registry import MODELS, nearest
from chatbridge.models.chatbridge import ChatBridgeConfig
from chatbridge.models.language_model_folder import build, read_settings, settings_of
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


PUBLISHED: dict[str, dict[str, Any]] = {
    f"vicuna-{name}-{version}": _llama(*size, vocab, context, eps)
    for name, size in (("7b", (4096, 32, 32, 11008)), ("13b", (5120, 40, 40, 13824)))
    for version, vocab, context, eps in (
        ("v0", 32001, 2048, 1e-6),
        ("v1.1", 32000, 2048, 1e-6),
        ("v1.3", 32000, 2048, 1e-6),
        ("v1.5", 32000, 4096, 1e-5),
    )
}
"""Folder name -> a transformers configuration (``model_type`` and its keys)."""


def find_architecture(config: CausalLMConfig, named: str | None = None) -> tuple[PretrainedConfig, str]:
    """The architecture of the language model that a run's configuration names, and where it was found.

    Args:
        config: ``model.llm``. named: a name of `PUBLISHED`, a ``config.json`` or its folder; for a folder not there.

    Raises:
        ValueError: when none of these knows it, with what to do.
    """
    folder = Path(config.path)
    if (folder / "config.json").is_file():
        return read_settings(folder), str(folder / "config.json")
    name = folder.name if named is None else named
    if name in PUBLISHED:
        return settings_of(PUBLISHED[name], name), f"the published architecture {name}"
    if named is None:
        raise ValueError(
            f"model.llm.path: '{folder}' has no config.json, and no published architecture is called '{name}': put "
            f"the model's config.json there, or name the architecture with --llm (known: {', '.join(PUBLISHED)})"
        )
    path = Path(named)
    if (path / "config.json").is_file() or path.is_file():
        return read_settings(path), str(path)
    raise ValueError(
        f"--llm {named}: neither a published architecture nor a config.json; {nearest(named, list(PUBLISHED))}"
    )


def meta_model(config: ChatBridgeConfig, named: str | None = None, device: str = "meta") -> tuple[nn.Module, str]:
    """The model of a configuration on the meta device, and where its language model's architecture comes from.

    Args:
        config: the ``model:`` section. named: see `find_architecture`.
        device: another than "meta" gives random weights where the configuration names no files.

    Raises:
        ValueError: an unknown architecture, or parts that do not go together.
    """
    if not (isinstance(config, ChatBridgeConfig) and type(config.llm) is CausalLMConfig):
        with torch.device(device):  # somebody's own model or language model: it must know how to be built there
            return MODELS.build(config), ""
    architecture, source = find_architecture(config.llm, named)
    with torch.device(device):
        llm = CausalLM(config.llm, build(architecture, source, DTYPES[config.llm.dtype], config.llm.attention))
        return MODELS.build(config, llm=llm), source
