"""Simulated steps against real ones: operations, bytes alive phase by phase, what optimizers keep."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoModelForCausalLM, LlamaConfig

from chatbridge.common.optim import build_optimizers
from chatbridge.common.plugins import import_plugins
from chatbridge.common.registry import ENCODERS, OPTIMIZERS
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
from chatbridge.planning.batch_shapes import BatchShape, MediaBatch
from chatbridge.planning.parameters import component_of
from chatbridge.planning.recorder import Recorder, shorten
from chatbridge.planning.simulator import Simulator, blank_batch, rows_of
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
    "amp over an fp32 model": {"amp": True},
    "checkpointing": {"checkpointing": True},
    "amp checkpointing": {"dtype": "bfloat16", "amp": True, "checkpointing": True},
    "temporal, norm learns": {"temporal": 4, "norm": True, "modality": "video", "steps": 2},
    "frozen perceivers, temporal": {"freeze": True, "temporal": 4},
    "shared, every branch": {"share": True, "world": 2},
    "grouped heads": {"kv": 2},
    "amp, large vocabulary": {"dtype": "bfloat16", "amp": True, "vocabulary": 20_000},
    "amp, every branch": {"dtype": "bfloat16", "amp": True, "world": 2, "modality": "audio"},
    "packed": {"rows": 2},
}


def model(
    dtype="float32", checkpointing=False, temporal=0, norm=False, freeze=False, share=False, kv=4, vocabulary=700,
    layers=3, depth=2, encoder=None,
):  # fmt: skip
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=vocabulary, hidden_size=192, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=kv, intermediate_size=520, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    language = AutoModelForCausalLM.from_config(settings, dtype=DTYPES[dtype], attn_implementation="sdpa")
    llm = CausalLM(CausalLMConfig(path="", dtype=dtype, gradient_checkpointing=checkpointing), language)
    perceiver = QFormerConfig(num_queries=Q, width=64, layers=3, heads=4, intermediate=160, encoder_width=96)
    eva = encoder or EvaVitConfig(image_size=56, width=96, depth=depth, heads=4, dtype=dtype)
    beats = BeatsConfig(
        patch_width=32, width=48, depth=depth, heads=4, ffn_width=96, conv_pos=8, conv_pos_groups=4, dtype=dtype
    )
    more = {"perceiver": perceiver, "temporal_positions": temporal, "norm_trainable": norm}
    bridges = {
        "vision": BridgeConfig(modalities=["image", "video"], encoder=eva, **more),
        "audio": BridgeConfig(modalities=["audio"], encoder=beats, **more),
    }
    config = ChatBridgeConfig(llm=None, bridges=bridges, share_perceivers=share, freeze_perceivers=freeze)
    return ChatBridge(config, llm=llm).train()


def on_meta(**settings):
    with torch.device("meta"):
        return model(**settings)


def shape_of(modality="image", steps=1, rows=None):
    media = {m: MediaBatch(B, steps, (64, 64) if m == "audio" else (3, 56, 56)) for m in modality.split("+")}
    return BatchShape(B, L if rows is None else B // rows * L, B * K, media, rows)


def parts_of(case):
    """(settings of the model, shape of the batch, settings of the simulation)."""
    settings = dict(CASES[case])
    shape = shape_of(**{k: settings.pop(k) for k in ("modality", "steps", "rows") if k in settings})
    how = {"amp": "bf16" if settings.pop("amp", False) else None, "world": settings.pop("world", 1)}
    return settings, shape, how


def real_step(made, shape, how):
    """A step with content, on the CPU, under the same recorder."""
    made.every_branch = how["world"] > 1
    trainable = [p for p in made.parameters() if p.requires_grad]
    for parameter in trainable if how["world"] > 1 else ():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    made.llm.try_out("packing")
    with Recorder(made, component_of, layers=list(made.llm.model.model.layers)) as seen:
        batch = blank_batch(shape, rows_of(made, shape))
        with torch.autocast("cpu", torch.bfloat16) if how["amp"] else nullcontext():
            loss = made(batch).loss_sum
        kept = seen.now
        loss.backward()
        left = seen.now
    return seen, kept, left


@pytest.mark.parametrize("case", CASES)
def test_a_step_without_content_takes_what_a_real_one_does(case):
    settings, shape, how = parts_of(case)
    step = Simulator(on_meta(**settings), **how).step(shape)
    seen, kept, left = real_step(model(**settings), shape, how)
    assert step.flops == seen.flops and step.peaks.keys() == seen.peaks.keys()
    for phase, bytes in seen.peaks.items():
        assert step.peaks[phase] == pytest.approx(bytes, rel=0.01), phase
    assert (step.kept, step.left) == pytest.approx((kept, left), rel=0.01)


@pytest.mark.parametrize("case", ["fp32 image and audio", "amp video", "checkpointing"])
def test_operations_are_those_that_pytorch_counts(case):
    settings, shape, how = parts_of(case)
    work = Simulator(on_meta(**settings), **how).work(shape)
    made = model(**settings)
    # The CPU's fused kernel is not known to the counter: it is counted as the GPU's.
    aten = torch.ops.aten
    kernels = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda *qkv, out_shape, **_: sdpa_flop_count(*qkv[:3]),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *gqkv, out_shape, **_: (
            sdpa_backward_flop_count(*gqkv[:4])
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        with torch.autocast("cpu", torch.bfloat16) if how["amp"] else nullcontext():
            loss = made(blank_batch(shape, rows_of(made, shape))).loss
        forward = counter.get_total_flops()
        loss.backward()
    assert sum(w.forward for w in work.values()) == forward
    assert sum(w.backward for w in work.values()) == counter.get_total_flops() - forward
    assert work["bridges.vision.encoder"].backward == 0 < work["bridges.vision.projector"].backward


@pytest.mark.parametrize("more", [{}, {"amp": True}, {"checkpointing": True, "dtype": "bfloat16", "amp": True}])
def test_few_layers_tell_what_all_of_them_take(more):
    how = {"amp": "bf16" if (more := dict(more)).pop("amp", False) else None}
    settings, shape = {"layers": 9, "depth": 7, **more}, shape_of("image+audio")
    assert [stack.left_out for stack in shorten(on_meta(**settings))] == [6, 4, 4]
    short, whole = (Simulator(on_meta(**settings), short=s, **how).step(shape) for s in (True, False))
    assert short.flops == whole.flops
    for phase, bytes in whole.peaks.items():
        assert short.peaks[phase] == pytest.approx(bytes, rel=0.002), phase
    assert (short.kept, short.left) == pytest.approx((whole.kept, whole.left))


def test_layers_that_learn_or_differ_are_all_run():
    learning, differing = on_meta(layers=9), on_meta(layers=9)
    next(learning.llm.model.model.layers[7].parameters()).requires_grad_(True)
    differing.llm.model.model.layers[7].attention_type = "with a window"
    assert not shorten(learning) and not shorten(differing)


def test_averages_are_run_several_at_once():
    simulator, shape = Simulator(on_meta()), shape_of()
    half = replace(shape, media={"image": replace(shape.media["image"], count=B / 8)})
    whole, part = (simulator.work(s)["bridges.vision.encoder"].forward for s in (shape, half))
    assert part == pytest.approx(whole / 8)


@pytest.mark.parametrize("name", ["adamw", "muon", "lion"])
def test_what_an_optimizer_keeps(name):
    import_plugins(["lion.py"], tiny.ROOT / "tests" / "plugins", "this test")
    run = TrainingConfig(output_dir="", weight_decay=0.0, optimizer=OPTIMIZERS.configured(name))
    empty, made = on_meta(), model()
    planned = build_optimizers(empty.named_parameters(), run)  # of the model before it is simulated
    update = Simulator(empty).update(planned)
    real = build_optimizers(made.named_parameters(), run)
    for parameter in made.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    for optimizer in real:
        optimizer.step()
    states = [t for o in real for s in o.state.values() for t in s.values() if t.dim()]
    assert update.state == sum(t.nbytes for t in states) > 0
    assert update.temporary > 0 and (update.flops > 0) == (name == "muon")


class Pitches(nn.Module):
    """An encoder from outside: its tokens stand on no grid, and their number depends on values."""

    def __init__(self, config):
        super().__init__()
        self.width = config.width
        self.linear = nn.Linear(56, config.width)

    def forward(self, x):
        x = x / 255 if x.max() > 1 else x
        return self.linear(x.flatten(1, 2)).relu()


def test_an_encoder_from_outside_the_package(monkeypatch):
    monkeypatch.setattr(ENCODERS, "_entries", dict(ENCODERS._entries))
    Config = type("PitchesConfig", (EvaVitConfig,), {"__module__": __name__})
    ENCODERS.register("pitches", config=Config)(Pitches)
    settings = {"encoder": Config(width=32, heads=4)}
    step = Simulator(on_meta(**settings)).step(shape_of())
    seen, kept, _ = real_step(model(**settings), shape_of(), {"amp": None, "world": 1})
    assert step.flops == seen.flops and step.kept == pytest.approx(kept, rel=0.01)
    assert seen.flops["bridges.vision.encoder", False, False] == 2 * B * 3 * 56 * 56 * 32


def test_dropout_keeps_a_byte_for_each_number():
    def dropping(rate):
        with torch.device("meta"):
            made = model()
            for bridge in made.bridges.values():
                for module in bridge.projector.modules():
                    if hasattr(module, "p"):
                        module.p = rate
        return Simulator(made).step(shape_of()).kept

    # 3 layers of self-attention and feed-forward, 2 of cross-attention, and the queries themselves.
    assert dropping(0.1) - dropping(0.0) == pytest.approx(B * Q * 64 * 9, rel=0.01)
