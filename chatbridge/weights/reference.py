"""The published architecture, without memory, to hold files against when the user names no configuration."""

from __future__ import annotations

from torch import Tensor, nn

from chatbridge.common.registry import ENCODERS, LLMS, MODELS
from chatbridge.common.schema import bind
from chatbridge.weights.filling import empty_weights

VICUNA = {
    "model_type": "llama", "vocab_size": 32001, "hidden_size": 5120, "num_hidden_layers": 40,
    "num_attention_heads": 40, "intermediate_size": 13824, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""Vicuna-13B v0, the language model of the published checkpoints."""

MODEL = {
    "llm": None,
    "share_perceivers": True,
    "bridges": {
        "vision": {
            "modalities": ["image", "video"],
            "encoder": {"name": "eva_vit", "dtype": "float16"},
            "perceiver": {"encoder_width": 1408},
        },
        "audio": {"modalities": ["audio"], "encoder": {"name": "beats"}, "perceiver": {"encoder_width": 1408}},
    },
}
"""ChatBridge-13B's bridges, as model_configs/chatbridge.yaml has them."""


def published_encoder(name: str) -> nn.Module:
    """A registered encoder of the sizes that are its usual ones: EVA-ViT-G with 39 blocks, BEATs iter3+."""
    entry = ENCODERS.get(name)
    with empty_weights():
        return entry.target(entry.config())


def published_language_model(settings: dict | None = None) -> nn.Module:
    """The language model of a config.json (None: Vicuna-13B v0), in half precision."""
    language = LLMS.get("causal_lm").target.from_config(dict(settings or VICUNA), "float16", empty=True)
    language.model.tie_weights()  # building without memory takes shared tensors apart
    return language


def published_model(tensors: dict[str, Tensor] | None = None) -> nn.Module:
    """ChatBridge-13B; the vocabulary and the number of temporal embeddings are those that a file's tensors show."""
    shapes = {name.removeprefix("module."): tensor.shape for name, tensor in (tensors or {}).items()}
    shapes = {name: shape for name, shape in shapes.items() if len(shape) > 1 and max(shape) < 10**6}
    table = shapes.get("llama_model.model.embed_tokens.weight")
    config = bind(MODELS.get("chatbridge").config, {**MODEL, "llm": {"path": ".", "random_weights": True}})
    for bridge, name in (("vision", "visual_temporal_pos_embeds"), ("audio", "audio_temporal_pos_embeds")):
        if name in shapes:
            config.bridges[bridge].temporal_positions = shapes[name][1]
    llm = published_language_model(VICUNA | {"vocab_size": table[0]} if table else None)
    with empty_weights():
        return MODELS.build(config, llm=llm)
