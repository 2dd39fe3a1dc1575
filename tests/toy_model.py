"""A ChatBridge of a few thousand parameters and a batch for it."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import LlamaConfig

from chatbridge.common.batch import IGNORE, TEXT, MultimodalBatch
from chatbridge.common.registry import MODELS
from chatbridge.models import (
    BeatsConfig,
    Bridge,
    BridgeConfig,
    CausalLM,
    EvaVitConfig,
    QFormerConfig,
)
from tests.variants import configured

Q = 3
EOS = 2


def llm(dtype="float32", **changes):
    settings = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": EOS,
    }
    return CausalLM.from_config(LlamaConfig(**settings | changes), dtype)


def config(compat="default", **changes):
    perceiver = QFormerConfig(num_queries=Q, width=8, layers=2, heads=2, intermediate=16, encoder_width=12)
    eva = EvaVitConfig(image_size=28, width=12, depth=1, heads=2)
    beats = BeatsConfig(patch_width=6, width=8, depth=2, heads=2, ffn_width=16, conv_pos=4, conv_pos_groups=2)
    visual = BridgeConfig(modalities=["image", "video"], encoder=eva, perceiver=perceiver, temporal_positions=2)
    audio = BridgeConfig(modalities=["audio"], encoder=beats, perceiver=perceiver)
    return configured(
        MODELS, "chatbridge", compat, **{"llm": None, "bridges": {"visual": visual, "audio": audio}} | changes
    )


def bridge(llm_width=16, **changes):
    torch.manual_seed(0)
    return Bridge(BridgeConfig(**{"modalities": ["image"]} | changes), llm_width).eval()


def model(seed=0, language=None, **changes):
    torch.manual_seed(seed)
    return MODELS.build(config(**changes), llm=language or llm()).eval()


def with_dropout(p, **changes):
    cfg = config(**changes)
    for bridge in cfg.bridges.values():
        bridge.perceiver = replace(bridge.perceiver, dropout=p)
    return cfg


def batch(left=0, seed=0, supervised=True):
    """Two samples, image then text then audio then text; the second is `left` padded, or not padded."""
    torch.manual_seed(seed)
    order = [TEXT, *[1] * Q, TEXT, TEXT, *[0] * Q, TEXT, TEXT, TEXT]
    slots = torch.tensor([order, order])
    ids = torch.randint(3, 40, slots.shape)
    labels = torch.full_like(ids, IGNORE)
    if supervised:
        labels[:, -3:] = ids[:, -3:]
    mask = torch.ones_like(ids)
    if left:
        pad = torch.zeros(1, left, dtype=torch.long)
        slots = torch.cat([torch.cat([slots[:1], pad + TEXT], 1), torch.cat([pad + TEXT, slots[1:]], 1)])
        ids = torch.cat([torch.cat([ids[:1], pad], 1), torch.cat([pad, ids[1:]], 1)])
        mask = torch.cat([torch.cat([mask[:1], pad], 1), torch.cat([pad, mask[1:]], 1)])
        labels = torch.cat([torch.cat([labels[:1], pad + IGNORE], 1), torch.cat([pad + IGNORE, labels[1:]], 1)])
    media = {"image": torch.randn(2, 1, 3, 28, 28), "audio": torch.randn(2, 2, 32, 32)}
    return MultimodalBatch(["a", "b"], ids, mask, labels, slots, media)
