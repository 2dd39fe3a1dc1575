"""Encoders, perceiver bridges, the frozen language model, and their fusion."""

from chatbridge.models.bridge import Bridge, BridgeConfig
from chatbridge.models.chatbridge import ChatBridge, ChatBridgeConfig, Output
from chatbridge.models.encoders import Beats, BeatsConfig, EvaVit, EvaVitConfig
from chatbridge.models.llm import CausalLM, CausalLMConfig
from chatbridge.models.perceiver import Perceiver, PerceiverConfig
from chatbridge.models.qformer import QFormer
from chatbridge.weights.adapters import to_original
from chatbridge.weights.readers import load_checkpoint, load_original

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
    "Output",
    "Perceiver",
    "PerceiverConfig",
    "QFormer",
    "load_checkpoint",
    "load_original",
    "to_original",
]
