"""The golden ChatBridge, built here and filled with the original's weights by their original names."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path

import torch
from transformers import LlamaConfig

from chatbridge.common.batch import MultimodalBatch
from chatbridge.common.registry import MODELS
from chatbridge.datasets.collate import Collator
from chatbridge.models import (
    BeatsConfig,
    BridgeConfig,
    CausalLM,
    ChatBridge,
    ChatBridgeConfig,
    EvaVitConfig,
    QFormerConfig,
    load_original,
)
from chatbridge.processors.tokenizer import load_tokenizer
from chatbridge.weights.name_mapping import original_targets
from tests.parity.conftest import Case
from tests.parity.test_assembly import batch_of, slots_of
from tests.variants import configured

TEMPORAL = ("visual_temporal_pos_embeds", "audio_temporal_pos_embeds")


@lru_cache(maxsize=2)
def original_weights(folder: Path, name: str = "chatbridge_weights") -> Case:
    return Case(folder, name)


def model_config(weights: Case, temporal: bool, compat: str = "original", **changes) -> ChatBridgeConfig:
    """The configuration that the weights' sidecar stands for; `llm` is built apart."""
    config, tensors = weights.info["config"], weights.weights
    vit, qformer = config["vit"], config["qf"]
    perceiver = {
        "num_queries": qformer["nq"],
        "width": qformer["hidden"],
        "layers": qformer["layers"],
        "heads": qformer["heads"],
        "intermediate": qformer["inter"],
        "encoder_width": vit["dim"],
    }
    eva = EvaVitConfig(
        image_size=vit["img"],
        width=vit["dim"],
        depth=vit["depth"],
        heads=vit["heads"],
        patch_size=tensors["visual_encoder.patch_embed.proj.weight"].shape[-1],
    )
    visual = BridgeConfig(
        modalities=["image", "video"],
        encoder=eva,
        perceiver=QFormerConfig(**perceiver),
        temporal_positions=config["num_frames"] if temporal else 0,
    )
    audio = BridgeConfig(
        modalities=["audio"],
        encoder=BeatsConfig.from_published(config["beats"]),
        perceiver=QFormerConfig(**perceiver),
        adapter="always",
        temporal_positions=config["num_audios"] if temporal else 0,
    )
    bridges = {"visual": visual, "audio": audio}
    keys = {"llm": None, "bridges": bridges, "share_perceivers": True} | changes
    return configured(MODELS, "chatbridge", compat, **keys)


def build_llm(weights: Case) -> CausalLM:
    config = weights.info["config"]
    settings = LlamaConfig(
        vocab_size=config["llama_vocab"],
        max_position_embeddings=config["max_position_embeddings"],
        bos_token_id=config["bos_id"],
        eos_token_id=2,
        tie_word_embeddings=False,
        **config["llama"],
    )
    return CausalLM.from_config(settings)


def build_model(folder: Path, temporal: bool = True, weights_file: str = "chatbridge_weights", **changes) -> ChatBridge:
    """The golden model in eval mode; without temporal embeddings it is the original's `multi_sample: False`."""
    weights = original_weights(folder, weights_file.removesuffix(".safetensors"))
    model = MODELS.build(model_config(weights, temporal, **changes), llm=build_llm(weights))
    state = {k: v for k, v in weights.weights.items() if temporal or k not in TEMPORAL}
    load_original(model, state)
    return model.eval()


def rows_of(model: ChatBridge) -> dict[str, int]:
    """Modality -> rows of a medium, which for the qformer depend on nothing."""
    return {modality: rows((1,)) for modality, rows in model.rows.items()}


def model_of(case: Case, **changes) -> ChatBridge:
    """The model that a forward case was run on."""
    return build_model(case.folder, case.info["config"]["multi_sample"], case.info["weights_file"], **changes)


def batch_with_media(
    case: Case, model: ChatBridge, compat: str = "original", collator: Collator | None = None
) -> MultimodalBatch:
    """Strings through the real conversation code, tokenizer and collator; media from the case."""
    batch = batch_of(case, load_tokenizer(case.folder / "tokenizer"), rows_of(model), compat, collator)
    inputs, media = case.inputs, {}
    for modality, count in Counter(slot.modality for slot in slots_of(case) for _ in range(slot.count)).items():
        tensor = inputs[modality]
        # Several media in a sample (stage 3): each is a medium of one frame.
        media[modality] = tensor.flatten(0, 1).unsqueeze(1) if count > 1 else tensor
    batch.media = media
    return batch


def full_logits(model: ChatBridge, batch: MultimodalBatch, embeds: torch.Tensor) -> torch.Tensor:
    """Logits at every visible position, in row-major order."""
    from chatbridge.models.chatbridge import _positions

    keep = batch.attention_mask_BL.bool()
    return model.llm.logits_at(embeds, batch.attention_mask_BL, _positions(batch), keep)


def gradients(model: ChatBridge) -> dict[str, torch.Tensor | None]:
    """Gradient of every trainable tensor, by original name."""
    tensors = {name: target.places[0] for name, target in original_targets(model).items()}
    return {name: tensor.grad for name, tensor in tensors.items() if tensor.requires_grad}


def trainable_names(model: ChatBridge) -> list[str]:
    """Original names of the tensors that train."""
    return [name for name, target in original_targets(model).items() if target.places[0].requires_grad]
