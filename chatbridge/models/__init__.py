"""Encoders, projectors, the bridges made of them, the frozen language model, and their fusion.

For notebooks, the names by which LAVIS users load a model are found here, too; see `chatbridge.inference.zoo`.
"""

from typing import Any

from chatbridge.models.bridge import Bridge, BridgeConfig
from chatbridge.models.chatbridge import ChatBridge, ChatBridgeConfig, ChatBridgeOutput
from chatbridge.models.encoders import Beats, BeatsConfig, EvaVit, EvaVitConfig
from chatbridge.models.llm import CausalLM, CausalLMConfig
from chatbridge.models.projectors import (
    MlpConfig,
    MlpProjector,
    QFormer,
    QFormerConfig,
    QFormerProjector,
    ResamplerConfig,
    ResamplerProjector,
)
from chatbridge.weights.loading import load_checkpoint, load_original
from chatbridge.weights.name_mapping import to_original

__all__ = [
    "Beats",
    "BeatsConfig",
    "Bridge",
    "BridgeConfig",
    "CausalLM",
    "CausalLMConfig",
    "ChatBridge",
    "ChatBridgeConfig",
    "EvaVit",
    "EvaVitConfig",
    "MlpConfig",
    "MlpProjector",
    "ChatBridgeOutput",
    "QFormer",
    "QFormerConfig",
    "QFormerProjector",
    "ResamplerConfig",
    "ResamplerProjector",
    "load_checkpoint",
    "load_original",
    "to_original",
]

_FROM_THE_ZOO = ("load_model", "load_model_and_preprocess", "load_preprocess", "model_zoo")


def __getattr__(name: str) -> Any:
    """The zoo's names, imported when one is asked for: this room knows nothing of those above it until then."""
    if name not in _FROM_THE_ZOO:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from chatbridge.inference import zoo

    return getattr(zoo, name)
