"""ChatBridge at toy size: what fails loudly, what carries loss, what stays frozen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from chatbridge.common.batch import IGNORE, TEXT
from chatbridge.common.registry import ENCODERS, MODELS
from chatbridge.common.schema import bind
from chatbridge.models import (
    BeatsConfig,
    BridgeConfig,
    CausalLM,
    CausalLMConfig,
    ChatBridge,
    ChatBridgeConfig,
    EvaVitConfig,
    QFormerConfig,
    to_original,
)
from tests.toy_model import Q, batch, config, llm, model, with_dropout
from tests.variants import MODES


class TestFusion:
    def test_media_land_in_their_slots(self):
        m, b = model(), batch()
        embeds = m.fuse(b)
        for index, name in enumerate(["audio", "image"]):
            rows = m.encode(name, b.media[name])
            assert torch.equal(embeds[b.slots_BL == index].view(2, Q, -1), rows)
        text = b.slots_BL == TEXT
        assert torch.equal(embeds[text], m.llm.embed(b.input_ids_BL)[text])

    @pytest.mark.parametrize("compat", MODES)
    def test_mismatch_names_modality_and_both_counts(self, compat):
        b = batch()
        b.slots_BL[0, -1] = 0
        with pytest.raises(ValueError, match=rf"audio: {2 * Q + 1} positions .* {2 * Q} rows"):
            model(compat=compat).fuse(b)

    def test_a_missing_position_is_a_mismatch_too(self):
        b = batch()
        b.slots_BL[0, 1] = TEXT
        with pytest.raises(ValueError, match=rf"image: {2 * Q - 1} positions .* {2 * Q} rows"):
            model().fuse(b)

    def test_samples_may_not_borrow_positions_from_each_other(self):
        b = batch()
        b.slots_BL[0, 1], b.slots_BL[1, 0] = TEXT, 1
        with pytest.raises(ValueError, match=f"image: sample 'a' has {Q - 1} positions, not a multiple of {Q}"):
            model().fuse(b)

    def test_original_truncation_may_cut_into_media(self):
        m, b = model(compat="original"), batch()
        b.slots_BL[0, 8] = TEXT
        m.fuse(b)
        rows = m.encode("audio", b.media["audio"])
        embeds = m.fuse(b)
        assert torch.equal(embeds[0, 6:8], rows[0, : Q - 1])
        assert torch.equal(embeds[1, 6:9], rows[1])

    def test_slots_without_media(self):
        b = batch()
        del b.media["image"]
        with pytest.raises(ValueError, match=r"more modalities than the batch holds media of \(audio\)"):
            model().fuse(b)

    def test_media_without_slots(self):
        b = batch()
        b.slots_BL[b.slots_BL == 1] = TEXT
        with pytest.raises(ValueError, match=f"image: 0 positions in the text for {2 * Q} rows"):
            model().fuse(b)

    def test_unknown_modality(self):
        b = batch()
        b.media = {"audio": b.media["audio"], "thermal": b.media["image"]}
        with pytest.raises(ValueError, match="no bridge serves 'thermal'.* audio, image, video"):
            model().fuse(b)

    def test_too_many_frames(self):
        with pytest.raises(ValueError, match="image/video: 3 frames or clips for 2 temporal embeddings"):
            model().encode("video", torch.randn(1, 3, 3, 28, 28))


class TestLoss:
    def test_only_supervised_positions_get_logits(self):
        m, b = model(), batch()
        shapes = []
        m.llm.model.get_output_embeddings().register_forward_hook(lambda _m, _a, out: shapes.append(tuple(out.shape)))
        out = m(b, return_logits=True)
        assert shapes == [(6, 40)] and out.logits_KV.shape == (6, 40)
        assert out.supervised_tokens == 6 and out.sample_tokens_B.tolist() == [3, 3]

    def test_parts_of_the_loss(self):
        m, b = model(), batch()
        b.labels_BL[0, -3:-1] = IGNORE
        out = m(b, return_logits=True)
        losses = nn.functional.cross_entropy(
            out.logits_KV, b.labels_BL[:, 1:][b.labels_BL[:, 1:] != IGNORE], reduction="none"
        )
        assert out.loss.item() == pytest.approx(losses.mean().item(), rel=1e-6)
        assert out.loss_sum.item() == pytest.approx(losses.sum().item(), rel=1e-6)
        assert out.sample_losses_B.tolist() == pytest.approx([losses[0].item(), losses[1:].mean().item()], rel=1e-5)

    @pytest.mark.parametrize("compat", MODES)
    def test_nothing_supervised(self, compat):
        m = model(compat=compat)
        out = m(batch(supervised=False))
        assert out.supervised_tokens == 0
        assert out.loss.isnan() if compat == "original" else out.loss.item() == 0.0
        out.loss.backward()
        grads = [p.grad for p in m.parameters() if p.grad is not None]
        assert grads and all(bool((g == 0).all()) for g in grads)

    def test_padding_side_does_not_change_the_loss(self):
        """Position ids follow the mask, so that one row padded left and one padded right read the same text."""
        m = model()
        whole, padded = m(batch()), m(batch(left=4))
        assert torch.allclose(whole.sample_losses_B, padded.sample_losses_B, atol=1e-5)

    def test_given_position_ids_are_used(self):
        m, b = model(), batch(left=4)
        plain = replace(b, position_ids_BL=torch.arange(b.input_ids_BL.shape[1]).expand_as(b.input_ids_BL) * 3)
        assert not torch.allclose(m(b).sample_losses_B, m(plain).sample_losses_B, atol=1e-4)

    def test_only_trainable_parts_get_gradients(self):
        m = model().train()
        m(batch()).loss.backward()
        with_grad = {n for n, p in m.named_parameters() if p.grad is not None}
        assert with_grad == set(m.trainable_state())
        assert not any(".encoder." in n.replace("bert.encoder", "") or n.startswith("llm.") for n in with_grad)

    @pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "opt", "bloom", "gemma2", "granite"])
    def test_families_of_language_models(self, family):
        """The logits kept are those of the model's own forward: tables, heads, scales and caps of any family."""
        size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
        size |= {"intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 8} if family != "bloom" else {}
        size |= {"ffn_dim": 24, "word_embed_proj_dim": 8, "do_layer_norm_before": False} if family == "opt" else {}
        extra = {"gemma2": {"final_logit_softcapping": 0.5}, "granite": {"logits_scaling": 3.0}}.get(family, {})
        torch.manual_seed(0)
        language = CausalLM.from_config({"model_type": family, **size, **extra})
        m, b = model(language=language), batch(left=2)
        keep = b.labels_BL[:, 1:] != IGNORE
        with torch.no_grad():
            got = m(b, return_logits=True).logits_KV
            inputs = {"inputs_embeds": m.fuse(b), "attention_mask": b.attention_mask_BL}
            if family != "bloom":  # which knows distances only
                inputs["position_ids"] = (b.attention_mask_BL.cumsum(1) - 1).clamp_min(0)
            expected = language.model(**inputs).logits[:, :-1][keep]
            b = batch()
            first = language.model(inputs_embeds=m.fuse(b)).logits[:, -1].argmax(-1).tolist()
        assert torch.allclose(got, expected, atol=1e-5)
        m.llm.eos_ids = []
        assert [row[0] for row in m.generate(b, 2)] == first

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_half_language_model_with_fp32_bridges(self, dtype):
        m = model(language=llm(dtype))
        out = m(batch())
        assert out.loss.dtype == torch.float32 and out.loss.isfinite()
        out.loss.backward()
        assert m.bridges["visual"].projector.projection.weight.grad.dtype == torch.float32

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_half_encoders(self, dtype):
        cfg = config()
        for bridge in cfg.bridges.values():
            bridge.encoder = replace(bridge.encoder, dtype=dtype)
        torch.manual_seed(0)
        half, whole, b = ChatBridge(cfg, llm=llm()).eval(), model(), batch()
        for name in cfg.bridges:
            half.bridges[name].encoder.load_state_dict(whole.bridges[name].encoder.state_dict())
        half.load_trainable(whole.trainable_state())
        for name in b.media:
            rows, expected = half.encode(name, b.media[name]), whole.encode(name, b.media[name])
            assert rows.dtype == torch.float32
            assert (rows - expected).abs().max() < 0.1 * expected.abs().max()

    def test_autocast(self):
        m, b = model(), batch()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = m(b)
        assert out.loss.dtype == torch.float32
        assert out.loss.item() == pytest.approx(m(b).loss.item(), rel=0.05)

    def test_recomputing_activations_changes_nothing(self):
        torch.manual_seed(0)
        language = llm()
        again = CausalLM(CausalLMConfig(path="", gradient_checkpointing=True), language.model)
        m, b = model(language=again), batch()
        calls = []
        layer = again.model.base_model.layers[0].input_layernorm
        layer.register_forward_hook(lambda *_: calls.append(1))
        m.train()
        m(b).loss.backward()
        assert len(calls) == 2 and not layer.training
        grad = m.bridges["visual"].projector.projection.weight.grad.clone()
        m.zero_grad()
        m.eval()(b).loss.backward()
        assert len(calls) == 3
        assert torch.allclose(grad, m.bridges["visual"].projector.projection.weight.grad, atol=1e-7)


class TestModes:
    def test_frozen_parts_stay_in_eval_mode(self):
        m = model().train()
        for bridge in m.bridges.values():
            assert bridge.projector.qformer.training and bridge.projector.projection.training
            assert not any(part.training for part in bridge.encoder.modules())
            assert not bridge.norm.training
        assert not any(part.training for part in m.llm.modules())
        assert not any(p.requires_grad for b in m.bridges.values() for p in b.encoder.parameters())

    def test_norm_can_train(self):
        cfg = config()
        cfg.bridges["audio"].norm_trainable = True
        m = ChatBridge(cfg, llm=llm()).train()
        m(batch()).loss.backward()
        assert m.bridges["audio"].norm.weight.grad.abs().sum() > 0
        assert m.bridges["visual"].norm.weight.grad is None

    @pytest.mark.parametrize("compat", MODES)
    def test_dropout_in_generation(self, compat):
        """The original leaves the perceiver's dropout on when it generates; by default generation is exact."""
        torch.manual_seed(0)
        m = MODELS.build(with_dropout(0.5, compat=compat), llm=llm()).train()
        b, seen = batch(), []
        m.bridges["visual"].projector.projection.register_forward_hook(lambda _m, _a, out: seen.append(out))
        for _ in range(2):
            m.generate(b, 1)
        assert torch.equal(seen[0], seen[1]) is (compat == "default")
        assert m.training and m.bridges["visual"].projector.training

    def test_dropout_in_training_only(self):
        torch.manual_seed(0)
        m = ChatBridge(with_dropout(0.5), llm=llm()).train()
        b = batch()
        assert m(b).loss.item() != m(b).loss.item()
        m.eval()
        assert m(b).loss.item() == m(b).loss.item()


def test_from_a_mapping():
    """The keys as a YAML file gives them."""
    perceiver = {"num_queries": Q, "width": 8, "layers": 1, "heads": 2, "intermediate": 8}
    eva = {"name": "eva_vit", "image_size": 28, "width": 12, "depth": 1, "heads": 2}
    node = {
        "llm": {"path": ".", "dtype": "float16"},
        "bridges": {"visual": {"modalities": ["image"], "encoder": eva, "perceiver": perceiver}},
    }
    bound = bind(ChatBridgeConfig, node)
    assert isinstance(bound.llm, CausalLMConfig) and isinstance(bound.bridges["visual"].encoder, EvaVitConfig)
    assert ChatBridge(bound, llm=llm()).rows["image"]((1, 3, 28, 28)) == Q
    node["bridges"]["visual"]["encoder"] = eva | {"dept": 3}
    with pytest.raises(ValueError, match="bridges.visual.encoder.dept: unknown key; did you mean 'depth'"):
        bind(ChatBridgeConfig, node)


def test_encoders_from_outside():
    """All that a bridge asks of an encoder is `forward` and `width`."""

    class Thermal(nn.Module):
        width = 5

        def __init__(self, config):
            super().__init__()
            self.linear = nn.Linear(4, 5)

        def forward(self, x):
            return self.linear(x)

    @dataclass
    class ThermalConfig:
        pass

    ENCODERS.register("test_thermal", config=ThermalConfig)(Thermal)
    try:
        cfg = config()
        small = QFormerConfig(num_queries=Q, width=8, layers=1, heads=2, intermediate=8)
        cfg.bridges["heat"] = BridgeConfig(modalities=["thermal"], encoder=ThermalConfig(), perceiver=small)
        m = ChatBridge(cfg, llm=llm())
        assert m.encode("thermal", torch.randn(2, 3, 6, 4)).shape == (2, Q, 16)
        assert any(n.startswith("bridges.heat.") for n in m.trainable_state())
        with pytest.raises(ValueError, match="no modality for bridge heat"):
            to_original(m)
    finally:
        del ENCODERS._entries["test_thermal"]


def test_real_size_on_the_meta_device(tmp_path):
    """110,206,848 trainable parameters, as the original's modules have."""
    LlamaConfig(
        vocab_size=32001, hidden_size=5120, num_hidden_layers=40, num_attention_heads=40, intermediate_size=13824
    ).save_pretrained(tmp_path)
    shared = QFormerConfig(encoder_width=1408)
    bridges = {
        "visual": BridgeConfig(modalities=["image", "video"], encoder=EvaVitConfig(), perceiver=shared),
        "audio": BridgeConfig(modalities=["audio"], encoder=BeatsConfig(), perceiver=shared),
    }
    cfg = ChatBridgeConfig(llm=CausalLMConfig(path=str(tmp_path)), bridges=bridges, share_perceivers=True)
    with torch.device("meta"):
        m = ChatBridge(cfg)
    assert sum(t.numel() for t in m.trainable_state().values()) == 110_206_848
    assert {name: rows((4, 3, 224, 224)) for name, rows in m.rows.items()} == {"image": 32, "video": 32, "audio": 32}
    original = to_original_shapes(m)
    assert original["visual_encoder.pos_embed"] == (1, 257, 1408)
    assert original["visual_encoder.blocks.38.mlp.fc1.weight"] == (6144, 1408)
    assert original["audio_encoder.encoder.pos_conv.0.weight_v"] == (768, 48, 128)
    assert original["Qformer.bert.encoder.layer.10.crossattention.self.key.weight"] == (768, 1408)
    assert original["llama_proj.weight"] == (5120, 768)
    assert original["audio_trans.weight"] == (1408, 768)
    assert "Qformer.bert.encoder.layer.11.crossattention.self.key.weight" not in original


def to_original_shapes(m):
    from chatbridge.weights.name_mapping import original_targets

    return {name: tuple(target.places[0].shape) for name, target in original_targets(m).items()}
