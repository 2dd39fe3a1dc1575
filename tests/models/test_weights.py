"""What bridges share, what is saved and loaded, and how a file that does not fit is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chatbridge.models import (
    CausalLM,
    CausalLMConfig,
    ChatBridge,
    load_checkpoint,
    to_original,
)
from chatbridge.weights.loading import load_blip2, load_original
from tests.toy_model import EOS, batch, config, llm, model


class TestSharing:
    def test_one_qformer_and_projection(self):
        m = model(share_perceivers=True)
        visual, audio = m.bridges["visual"], m.bridges["audio"]
        assert visual.projector.qformer is audio.projector.qformer
        assert visual.projector.projection is audio.projector.projection
        assert visual.projector.query_tokens is not audio.projector.query_tokens
        names = m.trainable_state()
        assert not any(
            n.startswith(("bridges.audio.projector.qformer", "bridges.audio.projector.projection")) for n in names
        )
        alone = model()
        assert alone.bridges["visual"].projector.projection is not alone.bridges["audio"].projector.projection

    def test_shapes_that_cannot_be_shared(self):
        cfg = config(share_perceivers=True)
        cfg.bridges["audio"].perceiver = replace(cfg.bridges["audio"].perceiver, layers=3, heads=4)
        with pytest.raises(ValueError, match="audio and image/video cannot be shared: they differ in layers, heads"):
            ChatBridge(cfg, llm=llm())

    def test_widths_that_cannot_be_shared(self):
        cfg = config(share_perceivers=True)
        cfg.bridges["audio"].perceiver = replace(cfg.bridges["audio"].perceiver, encoder_width=None)
        with pytest.raises(ValueError, match="width 8 and 12"):
            ChatBridge(cfg, llm=llm())

    def test_one_modality_two_bridges(self):
        cfg = config()
        cfg.bridges["audio"].modalities = ["audio", "video"]
        with pytest.raises(ValueError, match="'visual' and 'audio' both serve 'video'"):
            ChatBridge(cfg, llm=llm())

    def test_a_zero_bank_only_on_request(self):
        assert model().bridges["audio"].projector.query_tokens.std() > 0.005
        cfg = config()
        cfg.bridges["audio"].perceiver = replace(cfg.bridges["audio"].perceiver, query_std=0.0)
        assert (ChatBridge(cfg, llm=llm()).bridges["audio"].projector.query_tokens == 0).all()


class TestWeights:
    @pytest.mark.parametrize("share", [False, True])
    def test_trainable_state_goes_round(self, share):
        a, b = model(1, share_perceivers=share), model(2, share_perceivers=share, language=llm())
        b.llm.load_state_dict(a.llm.state_dict())
        for name in ("visual", "audio"):
            b.bridges[name].encoder.load_state_dict(a.bridges[name].encoder.state_dict())
        assert a(batch()).loss.item() != b(batch()).loss.item()
        b.load_trainable(a.trainable_state())
        assert a(batch()).loss.item() == b(batch()).loss.item()

    def test_another_architecture_is_refused_name_by_name(self):
        m = model()
        state = m.trainable_state()
        before = {n: t.clone() for n, t in state.items()}
        bad = {n: t + 1 for n, t in state.items()}
        del bad["bridges.visual.temporal"]
        bad["bridges.visual.gate"] = torch.zeros(1)
        bad["bridges.audio.adapter.weight"] = torch.zeros(12, 9)
        with pytest.raises(ValueError) as error:
            m.load_trainable(bad, where="checkpoint 'x'")
        text = str(error.value)
        for part in (
            "checkpoint 'x' is of another architecture",
            "missing (1): bridges.visual.temporal",
            "unexpected (1): bridges.visual.gate",
            "bridges.audio.adapter.weight [12, 9] where [12, 8] is needed",
        ):
            assert part in text
        assert all(torch.equal(t, before[n]) for n, t in m.trainable_state().items()), "nothing was loaded"

    def test_original_names_go_round(self):
        a, b = model(1, share_perceivers=True), model(2, share_perceivers=True)
        load_original(b, to_original(a, full=True) | {"llama_model.model.rotary_emb.inv_freq": torch.zeros(4)})
        assert a(batch()).loss.item() == b(batch()).loss.item()

    def test_original_names_are_checked(self):
        m = model(share_perceivers=True)
        state = to_original(m)
        del state["audio_trans.bias"]
        state["Qformer.cls.predictions.bias"] = torch.zeros(3)
        with pytest.raises(ValueError) as error:
            load_original(m, state)
        assert "missing (1): audio_trans.bias" in str(error.value)
        assert "unexpected (1): Qformer.cls.predictions.bias" in str(error.value)

    def test_half_a_frozen_part_is_refused(self):
        m = model(share_perceivers=True)
        state = to_original(m) | {"ln_vision.weight": torch.ones(12)}
        with pytest.raises(ValueError, match=r"missing \(1\): ln_vision.bias"):
            load_original(m, state)

    def test_perceivers_that_differ_have_no_original_form(self):
        m = model()
        with pytest.raises(ValueError, match="bridges differ in Qformer"):
            to_original(m)
        load_original(m, to_original(model(3, share_perceivers=True)))
        visual, audio = m.bridges["visual"], m.bridges["audio"]
        assert torch.equal(visual.projector.projection.weight, audio.projector.projection.weight)

    def test_blip2(self):
        m, source = model(1, share_perceivers=True), model(2, share_perceivers=True)
        theirs = {n: t for n, t in to_original(source, full=True).items() if n.startswith(("Qformer.", "ln_vision."))}
        theirs["query_tokens"] = source.bridges["visual"].projector.query_tokens.detach()
        theirs["Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
        theirs["t5_proj.weight"] = torch.zeros(4, 8)
        audio = m.bridges["audio"].projector.query_tokens.detach().clone()
        ignored = load_blip2(m, theirs)
        assert sorted(ignored) == ["Qformer.bert.embeddings.position_ids", "t5_proj.weight"]
        assert torch.equal(m.bridges["visual"].projector.query_tokens, theirs["query_tokens"])
        assert torch.equal(m.bridges["audio"].projector.query_tokens, audio)
        with pytest.raises(ValueError, match="unexpected"):
            load_blip2(m, theirs | {"itm_haed.weight": torch.zeros(2)})

    def test_files(self, tmp_path):
        from safetensors.torch import save_file

        source = model(1, share_perceivers=True)
        save_file({n: t.contiguous() for n, t in source.trainable_state().items()}, tmp_path / "ours.safetensors")
        torch.save({"model": to_original(source), "epoch": 3}, tmp_path / "checkpoint_3.pth")
        for name in ("ours.safetensors", "checkpoint_3.pth"):
            got = model(2, share_perceivers=True, weights=[str(tmp_path / name)]).trainable_state()
            assert all(torch.equal(t, got[n]) for n, t in source.trainable_state().items())

    def test_unreadable_files(self, tmp_path):
        m = model()
        with pytest.raises(ValueError, match="nowhere.pth' do not exist"):
            load_checkpoint(m, tmp_path / "nowhere.pth")
        for name in ("page.pth", "cut.safetensors"):
            (tmp_path / name).write_text("<html>not found</html>")
            with pytest.raises(ValueError, match=name):
                load_checkpoint(m, tmp_path / name)

    def test_projection_scale(self):
        cfg = config()
        cfg.bridges["visual"].projection_scale = "auto"
        language = llm()
        m = ChatBridge(cfg, llm=language).eval()
        rows = m.encode("image", torch.randn(8, 1, 3, 28, 28)).norm(dim=-1).mean().item()
        assert rows == pytest.approx(language.embedding_norm(), rel=0.4)

    def test_a_folder_that_is_no_language_model(self, tmp_path):
        with pytest.raises(ValueError, match="has no config.json"):
            CausalLM(CausalLMConfig(path=str(tmp_path)))
        (tmp_path / "config.json").write_text('{"model_type": "not-a-model"}')
        with pytest.raises(ValueError, match="cannot load a causal language model"):
            CausalLM(CausalLMConfig(path=str(tmp_path)))

    def test_a_folder_goes_round(self, tmp_path):
        language = llm()
        language.model.save_pretrained(tmp_path)
        again = CausalLM(CausalLMConfig(path=str(tmp_path), dtype="bfloat16"))
        ids = torch.arange(5)[None]
        assert torch.equal(again.embed(ids), language.embed(ids).bfloat16())
        assert again.eos_ids == [EOS] and again.dtype == torch.bfloat16
