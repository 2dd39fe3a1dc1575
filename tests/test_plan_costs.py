"""The plan's formulas against what PyTorch counts: operations, bytes kept for the backward pass, bytes alive."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from chatbridge import register_all
from chatbridge.common.batch import IGNORE, TEXT, MultimodalBatch
from chatbridge.common.config import load_config
from chatbridge.common.optim import build_optimizers
from chatbridge.common.registry import OPTIMIZERS
from chatbridge.models import (
    BeatsConfig,
    BridgeConfig,
    CausalLM,
    CausalLMConfig,
    ChatBridge,
    ChatBridgeConfig,
    EvaVitConfig,
    QFormerConfig,
)
from chatbridge.planning.activations import saved_for_backward, weight_copies
from chatbridge.planning.flops import batch_work
from chatbridge.planning.geometry import BatchShape, Geometry, MediaBatch
from chatbridge.planning.inventory import inventory, meta_model
from chatbridge.planning.measure import LiveBytes, SavedBytes, as_fake, fake_loss
from chatbridge.planning.memory import resident, step_memory
from chatbridge.planning.sharding import Sharding
from chatbridge.runners import TrainingConfig
from chatbridge.weights import DTYPES
from tests import tiny

Q, B, L, K = 8, 4, 50, 24
"""Queries, samples, positions, supervised positions of a sample."""

CASES = {
    "fp32 image": {},
    "fp32 video": {"modality": "video", "steps": 3},
    "fp32 audio": {"modality": "audio", "steps": 2},
    "fp32 image and audio": {"modality": "image+audio"},
    "half model without amp": {"dtype": "bfloat16"},
    "amp": {"dtype": "bfloat16", "amp": True},
    "amp video": {"dtype": "bfloat16", "amp": True, "modality": "video", "steps": 3},
    "amp audio": {"dtype": "bfloat16", "amp": True, "modality": "audio", "steps": 2},
    "amp over an fp32 model": {"amp": True},
    "checkpointing": {"checkpointing": True},
    "amp checkpointing": {"dtype": "bfloat16", "amp": True, "checkpointing": True},
    "temporal, norm learns": {"temporal": 4, "norm": True, "modality": "video", "steps": 2},
    "amp temporal": {"dtype": "bfloat16", "amp": True, "temporal": 4, "modality": "audio", "steps": 2},
    "frozen perceivers": {"freeze": True},
    "frozen perceivers, temporal": {"freeze": True, "temporal": 4},
    "shared": {"share": True},
    "grouped heads": {"kv": 2},
    "amp, large vocabulary": {"dtype": "bfloat16", "amp": True, "vocabulary": 20_000},
    "every branch": {"every": True},
    "amp, every branch": {"dtype": "bfloat16", "amp": True, "every": True, "modality": "audio"},
    "shared, every branch": {"share": True, "every": True},
    "frozen perceivers, every branch": {"freeze": True, "every": True},
}


def model(
    dtype="float32", checkpointing=False, temporal=0, norm=False, freeze=False, share=False, kv=4, vocabulary=700
):
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=vocabulary, hidden_size=192, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=kv,
        intermediate_size=520, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    language = AutoModelForCausalLM.from_config(settings, dtype=DTYPES[dtype], attn_implementation="sdpa")
    llm = CausalLM(CausalLMConfig(path="", dtype=dtype, gradient_checkpointing=checkpointing), language)
    perceiver = QFormerConfig(num_queries=Q, width=64, layers=3, heads=4, intermediate=160, encoder_width=96)
    eva = EvaVitConfig(image_size=56, width=96, depth=2, heads=4, dtype=dtype)
    beats = BeatsConfig(
        patch_width=32, width=48, depth=2, heads=4, ffn_width=96, conv_pos=8, conv_pos_groups=4, dtype=dtype
    )
    more = {"perceiver": perceiver, "temporal_positions": temporal, "norm_trainable": norm}
    bridges = {
        "vision": BridgeConfig(modalities=["image", "video"], encoder=eva, **more),
        "audio": BridgeConfig(modalities=["audio"], encoder=beats, **more),
    }
    config = ChatBridgeConfig(llm=None, bridges=bridges, share_perceivers=share, freeze_perceivers=freeze)
    return ChatBridge(config, llm=llm).train()


def batch(modality="image", steps=1):
    """A padded batch, and its shape."""
    names = sorted(modality.split("+"))
    ids = torch.randint(3, 700, (B, L))
    labels, slots, mask = torch.full_like(ids, IGNORE), torch.full_like(ids, TEXT), torch.ones_like(ids)
    labels[:, -K:] = ids[:, -K:]
    mask[0, -2:] = 0
    media, shapes = {}, {}
    for index, name in enumerate(names):
        slots[:, 1 + index * Q : 1 + (index + 1) * Q] = index
        one = (64, 64) if name == "audio" else (3, 56, 56)
        media[name] = torch.randn(B, steps, *one)
        shapes[name] = MediaBatch(B, steps, one)
    names = [str(i) for i in range(B)]
    return MultimodalBatch(names, ids, mask, labels, slots, media), BatchShape(B, L, B * K, shapes)


def build(case):
    """(model, its geometry, batch, shape, context to compute in)."""
    settings = dict(CASES[case])
    amp, modality, steps = (settings.pop(k, d) for k, d in (("amp", False), ("modality", "image"), ("steps", 1)))
    every = settings.pop("every", False)
    made = model(**settings)
    made.every_branch = every
    given, shape = batch(modality, steps)
    context = torch.autocast("cpu", torch.bfloat16) if amp else nullcontext()
    return made, Geometry(made, "bf16" if amp else None, every), given, shape, context


@pytest.mark.parametrize("case", CASES)
def test_operations_are_those_that_pytorch_counts(case):
    made, geometry, given, shape, context = build(case)
    # The fused CPU kernel is not known to the counter; the plain one does the same products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        with context:
            loss = made(given).loss
        forward = counter.get_total_flops()
        loss.backward()
    work = batch_work(geometry, shape)
    assert sum(w.forward for w in work.values()) == pytest.approx(forward, rel=1e-6)
    assert sum(w.backward for w in work.values()) == pytest.approx(counter.get_total_flops() - forward, rel=0.01)


def test_operations_of_each_component():
    made, geometry, given, shape, _ = build("fp32 image and audio")
    work = batch_work(geometry, shape)
    with sdpa_kernel(SDPBackend.MATH):
        for name, modality in (("vision", "image"), ("audio", "audio")):
            bridge = made.bridges[name]
            with FlopCounterMode(display=False) as counter:
                features = bridge.features(given.media[modality])
            assert work[f"{name} encoder"].forward == counter.get_total_flops()
            assert work[f"{name} encoder"].backward == 0
            with FlopCounterMode(display=False) as counter:
                bridge.perceive(features)
            assert work[f"{name} perceiver"].forward == counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            made.llm.model.get_output_embeddings()(torch.zeros(B * K, 192))
        assert work["logits"].forward == work["logits"].backward == counter.get_total_flops()


@pytest.mark.parametrize("case", CASES)
def test_bytes_kept_for_the_backward_pass(case):
    made, geometry, given, shape, context = build(case)
    with SavedBytes(made) as saved, context:
        made(given)
    assert saved_for_backward(geometry, shape) == pytest.approx(saved.total, rel=0.05)


def test_converting_the_language_model_is_found():
    """Autocast to another type than the language model's keeps a copy of every matrix."""
    same, other = (Geometry(model(dtype), "bf16") for dtype in ("bfloat16", "float32"))
    shape = batch()[1]
    assert weight_copies(same, shape)[1] == 0
    matrices = 3 * (4 * 192 * 192 + 3 * 192 * 520) + 192 * 700
    assert weight_copies(other, shape)[1] == 2 * matrices


ALIVE = ["fp32 image", "amp video", "amp checkpointing", "amp over an fp32 model", "amp, large vocabulary"]
ALIVE += ["amp, every branch"]


@pytest.mark.parametrize("case", ALIVE)
def test_bytes_alive_at_the_worst_moment(case):
    made, geometry, given, shape, context = build(case)
    optimiser = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], foreach=True)

    def step(given):
        with context:
            loss = made(given).loss_sum
        loss.backward()
        del loss
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    step(batch("image+audio")[0])  # from now on the optimiser has its state for every bridge
    states = [t for s in optimiser.state.values() for t in s.values()]
    there = [*made.parameters(), *made.buffers(), *states, *given.media.values()]
    with LiveBytes(there) as live:
        step(given)
    always = resident(inventory(made), geometry, Sharding())
    predicted = always.always + step_memory(geometry, shape, always, Sharding()).peak
    assert predicted == pytest.approx(live.peak, rel=0.08)


@pytest.mark.parametrize(
    ("file", "modality", "samples", "steps", "length", "supervised"),
    [
        ("train_configs/chatbridge_pretrain.yaml", "image", 32, 1, 65, 32),
        ("instructiontuning_configs/instructtuning_ivaavchat_ckpt13.yaml", "video", 8, 4, 221, 60),
    ],
)
def test_the_real_model_simulated_without_its_content(file, modality, samples, steps, length, supervised):
    """13 billion parameters of fake tensors: a whole step, its operations, bytes kept and bytes alive."""
    register_all()
    config = load_config(tiny.ROOT / file).config.model
    config.llm.dtype = "bfloat16"  # the CPU's autocast type; as wide as fp16
    for bridge in config.bridges.values():
        bridge.encoder.dtype = "bfloat16"
        bridge.perceiver.dropout = 0.0  # without the fused kernel, the CPU would keep attention's probabilities
    made, _ = meta_model(config)
    count = inventory(made)
    mode = as_fake(made)
    made.train()
    geometry = Geometry(made, "bf16")
    step = (1024, 64) if modality == "audio" else (3, 224, 224)
    shape = BatchShape(samples, length, samples * supervised, {modality: MediaBatch(samples, steps, step)})
    with mode:
        with SavedBytes(made) as saved, torch.autocast("cpu", torch.bfloat16):
            fake_loss(made, shape)
        kept = saved.total
        del saved
        optimiser = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], foreach=True)
        with LiveBytes([*made.parameters(), *made.buffers()]) as live:
            for _ in range(2):
                live.peak = 0
                with torch.autocast("cpu", torch.bfloat16):
                    loss = fake_loss(made, shape)
                loss.backward()
                del loss
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
    assert saved_for_backward(geometry, shape) == pytest.approx(kept, rel=0.01)
    always = resident(count, geometry, Sharding())
    predicted = always.always + step_memory(geometry, shape, always, Sharding()).peak
    assert predicted == pytest.approx(live.peak, rel=0.005)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_bytes_of_the_optimisers(name):
    made, geometry, given, *_ = build("fp32 image and audio")
    run = TrainingConfig(output_dir="", weight_decay=0.0, optimizer=OPTIMIZERS.configured(name))
    optimisers = build_optimizers(made.named_parameters(), run)
    made(given).loss.backward()
    for optimiser in optimisers:
        optimiser.step()
    states = [t for o in optimisers for s in o.state.values() for t in s.values() if t.dim()]
    always = resident(inventory(made), geometry, Sharding(), name)
    assert always.optimiser == sum(t.numel() * t.element_size() for t in states)
    gradients = [p.grad for p in made.parameters() if p.grad is not None]
    assert always.gradients == sum(g.numel() * g.element_size() for g in gradients)


def test_closed_forms_of_the_encoders():
    """docs/planning.md writes the counted operations of both encoders as formulas."""
    made, geometry, *_ = build("fp32 image")
    eva, beats = (made.bridges[n].config.encoder for n in ("vision", "audio"))
    s, e = (eva.image_size // eva.patch_size) ** 2 + 1, eva.width
    f = int(e * eva.mlp_ratio)
    patches = 2 * (s - 1) * e * 3 * eva.patch_size**2
    step = geometry.encoder_step("image", (3, 56, 56))
    assert step.tokens == s
    assert step.flops == patches + eva.depth * (8 * s * e * e + 4 * s * e * f + 4 * s * s * e)
    s, e, w = (64 // 16) * (64 // 16), beats.width, beats.patch_width
    start = 2 * s * w * 16 * 16 + 2 * s * w * e + 2 * (s + 1) * e * (e // beats.conv_pos_groups) * beats.conv_pos
    layer = 8 * s * e * e + 4 * s * e * beats.ffn_width + 4 * s * s * e + 16 * s * e
    step = geometry.encoder_step("audio", (64, 64))
    assert step.tokens == s
    assert step.flops == start + beats.depth * layer
