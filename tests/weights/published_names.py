"""Names and shapes of published files, written down from those files and not taken from our own modules."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

BEATS_CFG = {
    "encoder_layers": 12, "encoder_embed_dim": 768, "encoder_ffn_embed_dim": 3072, "encoder_attention_heads": 12,
    "activation_fn": "gelu", "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
    "encoder_layerdrop": 0.05, "dropout_input": 0.0, "layer_norm_first": False, "conv_bias": False, "conv_pos": 128,
    "conv_pos_groups": 16, "relative_position_embedding": True, "num_buckets": 320, "max_distance": 800,
    "gru_rel_pos": True, "deep_norm": True, "input_patch_size": 16, "layer_wise_gradient_decay_ratio": 0.6,
    "embed_dim": 512, "finetuned_model": False,
}  # fmt: skip

TEXT_SIDE_OF_CLIP: Shapes = {
    "logit_scale": (), "text.positional_embedding": (77, 768), "text.text_projection": (768, 1024),
    "text.token_embedding.weight": (49408, 768), "text.ln_final.weight": (768,), "text.ln_final.bias": (768,),
    "text.transformer.resblocks.0.attn.in_proj_weight": (2304, 768),
}  # fmt: skip


def linear(name: str, out: int, into: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def eva(blocks: int = 40, head: bool = True, prefix: str = "") -> Shapes:
    """EVA-ViT-G: 40 blocks, a final norm and a head of 1024 in published files, 39 bare blocks inside ChatBridge."""
    w = 1408
    out: Shapes = {"cls_token": (1, 1, w), "pos_embed": (1, 257, w)}
    out |= {"patch_embed.proj.weight": (w, 3, 14, 14), "patch_embed.proj.bias": (w,)}
    for i in range(blocks):
        b = f"blocks.{i}"
        out |= norm(f"{b}.norm1", w) | norm(f"{b}.norm2", w)
        out |= {f"{b}.attn.q_bias": (w,), f"{b}.attn.v_bias": (w,), f"{b}.attn.qkv.weight": (3 * w, w)}
        out |= linear(f"{b}.attn.proj", w, w) | linear(f"{b}.mlp.fc1", 6144, w) | linear(f"{b}.mlp.fc2", w, 6144)
    if head:
        out |= norm("norm", w) | linear("head", 1024, w)
    return {prefix + name: shape for name, shape in out.items()}


def beats(finetuned: bool = False, new_weight_norm: bool = False) -> Shapes:
    """BEATs, whose table of relative positions stands in every layer."""
    g, v = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    g, v = (g, v) if new_weight_norm else ("weight_g", "weight_v")
    out: Shapes = {"patch_embedding.weight": (512, 1, 16, 16)}
    out |= norm("layer_norm", 512) | linear("post_extract_proj", 768, 512) | norm("encoder.layer_norm", 768)
    conv = "encoder.pos_conv.0"
    out |= {f"{conv}.{g}": (1, 1, 128), f"{conv}.{v}": (768, 48, 128), f"{conv}.bias": (768,)}
    for i in range(12):
        layer = f"encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            out |= linear(f"{layer}.self_attn.{part}", 768, 768)
        out |= linear(f"{layer}.self_attn.grep_linear", 8, 64) | {f"{layer}.self_attn.grep_a": (1, 12, 1, 1)}
        out |= {f"{layer}.self_attn.relative_attention_bias.weight": (320, 12)}
        out |= norm(f"{layer}.self_attn_layer_norm", 768) | norm(f"{layer}.final_layer_norm", 768)
        out |= linear(f"{layer}.fc1", 3072, 768) | linear(f"{layer}.fc2", 768, 3072)
    return out | (linear("predictor", 527, 768) if finetuned else {})


def qformer(text_side: bool = False) -> Shapes:
    """The Q-Former; with BLIP-2's text side where a checkpoint of its first stage is meant."""
    out: Shapes = {"Qformer.bert.embeddings.position_ids": (1, 512)} | norm("Qformer.bert.embeddings.LayerNorm", 768)
    for i in range(12):
        layer = f"Qformer.bert.encoder.layer.{i}"
        kinds = [("attention", 768)] + ([("crossattention", 1408)] if i % 2 == 0 else [])
        for kind, width in kinds:
            out |= linear(f"{layer}.{kind}.self.query", 768, 768)
            out |= linear(f"{layer}.{kind}.self.key", 768, width) | linear(f"{layer}.{kind}.self.value", 768, width)
            out |= linear(f"{layer}.{kind}.output.dense", 768, 768) | norm(f"{layer}.{kind}.output.LayerNorm", 768)
        for suffix in ("_query", "") if text_side else ("_query",):
            out |= linear(f"{layer}.intermediate{suffix}.dense", 3072, 768)
            out |= linear(f"{layer}.output{suffix}.dense", 768, 3072) | norm(f"{layer}.output{suffix}.LayerNorm", 768)
    if text_side:
        out |= {"Qformer.bert.embeddings.word_embeddings.weight": (30523, 768)}
        out |= {"Qformer.bert.embeddings.position_embeddings.weight": (512, 768)}
        out |= {"Qformer.cls.predictions.bias": (30523,)}
    return out


def llama(vocabulary: int = 32001, inv_freq: bool = True, prefix: str = "") -> Shapes:
    """Vicuna-13B."""
    out: Shapes = {"model.embed_tokens.weight": (vocabulary, 5120), "model.norm.weight": (5120,)}
    out |= {"lm_head.weight": (vocabulary, 5120)}
    for i in range(40):
        layer = f"model.layers.{i}"
        for part in "qkvo":
            out |= linear(f"{layer}.self_attn.{part}_proj", 5120, 5120, bias=False)
        out |= linear(f"{layer}.mlp.gate_proj", 13824, 5120, bias=False)
        out |= linear(f"{layer}.mlp.up_proj", 13824, 5120, bias=False)
        out |= linear(f"{layer}.mlp.down_proj", 5120, 13824, bias=False)
        out |= {f"{layer}.{n}.weight": (5120,) for n in ("input_layernorm", "post_attention_layernorm")}
        if inv_freq:
            out |= {f"{layer}.self_attn.rotary_emb.inv_freq": (64,)}
    return {prefix + name: shape for name, shape in out.items()}


def trainable() -> Shapes:
    """What the original trains: 110,206,848 parameters (the position ids are a buffer)."""
    out = {name: shape for name, shape in qformer().items() if "position_ids" not in name}
    out |= {"image_query_tokens": (1, 32, 768), "audio_query_tokens": (1, 32, 768)}
    return out | linear("audio_trans", 1408, 768) | linear("llama_proj", 5120, 768)


def original(full: bool = True, temporal: bool = False) -> Shapes:
    """An original ChatBridge checkpoint, with everything frozen inside or without."""
    out = trainable() | {"Qformer.bert.embeddings.position_ids": (1, 512)}
    if temporal:
        out |= {"visual_temporal_pos_embeds": (1, 4, 1, 1408), "audio_temporal_pos_embeds": (1, 2, 1, 1408)}
    if full:
        out |= eva(39, head=False, prefix="visual_encoder.") | norm("ln_vision", 1408) | norm("ln_audio", 768)
        out |= {f"audio_encoder.{name}": shape for name, shape in beats().items()}
        out |= llama(prefix="llama_model.")
    return out


def blip2_flant5xxl() -> Shapes:
    return {"query_tokens": (1, 32, 768)} | norm("ln_vision", 1408) | qformer() | linear("t5_proj", 4096, 768)


def blip2_stage1() -> Shapes:
    out = {"query_tokens": (1, 32, 768), "temp": ()} | norm("ln_vision", 1408) | qformer(text_side=True)
    return out | linear("vision_proj", 256, 768) | linear("text_proj", 256, 768) | linear("itm_head", 2, 768)


def on_meta(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}


def real(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Tensors whose every value tells which one it is: 1, 2, 3, ... thousandths."""
    return {n: torch.full(s, i * 1e-3, dtype=dtype) for i, (n, s) in enumerate(shapes.items(), 1)}


def count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())
