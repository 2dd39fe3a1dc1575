"""Published files at their real size: real names, real shapes, and real tensors where they fit."""

from __future__ import annotations

import pytest
import torch

from chatbridge.models import Beats, BeatsConfig, EvaVit, EvaVitConfig
from chatbridge.models.encoders.beats import TABLE
from chatbridge.weights import WeightSource, load_checkpoint
from chatbridge.weights.formats import detect
from chatbridge.weights.inspection import inspect
from chatbridge.weights.loading import plan_checkpoint, plan_encoder, plan_language_model
from chatbridge.weights.name_mapping import original_targets
from chatbridge.weights.reference import published_encoder, published_language_model, published_model
from tests.weights import published_names as names

FROZEN = ("visual_encoder.", "ln_vision.", "audio_encoder.", "ln_audio.", "llama_model.")


def source(shapes, extras=None):
    made = WeightSource.of(names.on_meta(shapes))
    made.extras.update(extras or {})
    return made


def checkpoint(shapes, model=None):
    file = source(shapes)
    return plan_checkpoint(model or published_model(file.tensors), file, "file")[0]


@pytest.fixture(scope="module")
def model():
    return published_model()


class TestTheWholeModel:
    def test_parameters(self, model):
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 110_206_848
        repeated = 11 * 320 * 12  # BEATs' table, and the position ids, are no parameters of their own
        assert sum(p.numel() for p in model.parameters()) == names.count(
            names.original()) - repeated - 512 - 40 * 64  # fmt: skip
        assert all(p.is_meta for p in model.parameters())

    def test_names_and_shapes(self, model):
        ours = {name: tuple(target.places[0].shape) for name, target in original_targets(model).items()}
        not_tensors_here = ("position_ids", "inv_freq")
        repeated = {f"audio_encoder.encoder.layers.{i}.{TABLE}" for i in range(1, 12)}
        assert ours == {
            name: shape
            for name, shape in names.original().items()
            if not name.endswith(not_tensors_here) and name not in repeated
        }

    def test_trainable_list(self, model):
        assert sorted(n for n, t in original_targets(model).items() if t.places[0].requires_grad) == sorted(
            names.trainable()
        )
        assert names.count(names.trainable()) == 110_206_848

    def test_nothing_trainable_is_half(self, model):
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


class TestOnMeta:
    @pytest.mark.parametrize("prefix", ["", "visual.", "visual.trunk."])
    def test_eva_with_40_blocks(self, prefix):
        shapes = names.eva(prefix=prefix) | (names.TEXT_SIDE_OF_CLIP if prefix else {})
        coverage = plan_encoder(published_encoder("eva_vit"), source(shapes), "file")[0]
        assert coverage.ok, coverage.complaint
        assert coverage.parameters == (names.count(names.eva(39, head=False)),) * 2
        assert len(coverage.ignored) == len(shapes) - len(names.eva(39, head=False))

    @pytest.mark.parametrize("finetuned", [False, True])
    @pytest.mark.parametrize("new", [False, True])
    def test_beats(self, finetuned, new):
        file = source(names.beats(finetuned, new), {"cfg": names.BEATS_CFG | {"finetuned_model": finetuned}})
        coverage, reading, *_ = plan_encoder(published_encoder("beats"), file, "file")
        assert coverage.ok and len(reading.copies) == 11 and len(coverage.ignored) == 2 * finetuned

    @pytest.mark.parametrize(("vocabulary", "inv_freq"), [(32001, True), (32000, False)])
    def test_vicuna(self, vocabulary, inv_freq):
        language = published_language_model({"model_type": "llama", "vocab_size": vocabulary, "hidden_size": 5120,
            "num_hidden_layers": 40, "num_attention_heads": 40, "intermediate_size": 13824})  # fmt: skip
        shapes = names.llama(vocabulary, inv_freq)
        coverage = plan_language_model(language.model, source(shapes), "file")[0]
        assert coverage.ok and coverage.parameters[0] == names.count(names.llama(vocabulary, inv_freq=False))
        other = plan_language_model(language.model, source(names.llama(64001 - vocabulary)), "file")[0]
        assert len(other.mismatched) == 2 and not other.ok

    @pytest.mark.parametrize("full", [True, False])
    @pytest.mark.parametrize("temporal", [True, False])
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_original(self, full, temporal, prefix):
        shapes = {prefix + name: shape for name, shape in names.original(full, temporal).items()}
        assert detect(shapes) == "original"
        coverage = checkpoint(shapes)
        assert coverage.ok, coverage.complaint
        assert bool(coverage.kept) != full and coverage.kind.endswith("partial") != full
        expected = names.count(names.trainable()) + temporal * 6 * 1408
        assert coverage.parameters[0] == (coverage.parameters[1] if full else expected)

    def test_temporal_embeddings_may_be_absent_from_the_file_not_from_the_model(self, model):
        with_temporal = published_model(names.on_meta(names.original(False, temporal=True)))
        without = checkpoint(names.original(False), with_temporal)
        assert without.ok and {"visual_temporal_pos_embeds", "audio_temporal_pos_embeds"} <= set(without.kept)
        coverage = checkpoint(names.original(False, temporal=True), model)
        assert len(coverage.unexpected) == 2 and "temporal_positions" in coverage.complaint

    @pytest.mark.parametrize("shapes", [names.blip2_flant5xxl(), names.blip2_stage1()])
    def test_blip2(self, shapes, model):
        assert detect(shapes) == "blip2"
        coverage = checkpoint(shapes, model)
        assert coverage.ok, coverage.complaint
        assert coverage.parameters[0] == 105_137_664 + 32 * 768 + 2 * 1408

    def test_minigpt4(self, model):
        shapes = names.linear("llama_proj", 5120, 768)
        assert detect(shapes) == "minigpt4"
        coverage = checkpoint(shapes, model)
        assert coverage.ok and coverage.tensors == (2, 2)
        assert not checkpoint(names.linear("llama_proj", 4096, 768), model).ok  # Vicuna-7B's

    @pytest.mark.parametrize("name", list(names.original(False))[::37] + ["llama_model.lm_head.weight"])
    def test_a_wrong_name_or_shape_cannot_pass(self, model, name):
        shapes = names.original()
        shapes[name + "_"] = shapes.pop(name)
        coverage = checkpoint(shapes, model)
        assert coverage.unexpected == [name + "_"]
        if "position_ids" not in name:
            assert coverage.missing == [name] and coverage.parameters[0] < coverage.parameters[1]
            shapes = names.original() | {name: (*names.original()[name][:-1], names.original()[name][-1] + 1)}
            assert len(checkpoint(shapes, model).mismatched) == 1

    def test_instructblip_is_refused(self):
        shapes = names.blip2_stage1() | names.linear("llm_proj", 5120, 768)
        with pytest.raises(ValueError, match="reads the instruction too"):
            checkpoint(shapes)


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    """The 110 M trainable parameters in a file as the original writes it."""
    file = tmp_path_factory.mktemp("real") / "checkpoint_4.pth"
    state = names.real(names.original(full=False))
    torch.save({"model": state, "optimizer": {"state": {}}, "config": {"run": {}}, "scaler": None, "epoch": 4}, file)
    yield file
    file.unlink()


@pytest.mark.slow
class TestForReal:
    def test_110_million_trainable_parameters(self, partial):
        model = published_model()
        coverage = load_checkpoint(model, partial)
        assert coverage.parameters == (110_206_848, 110_206_848)
        order = {name: i * 1e-3 for i, name in enumerate(names.original(full=False), 1)}
        for name, target in original_targets(model).items():
            tensor = target.places[0]
            assert tensor.is_meta == name.startswith(FROZEN), name
            if not tensor.is_meta:
                assert tensor.flatten()[0] == tensor.flatten()[-1] == torch.tensor(order[name]), name
        assert model.bridges["vision"].projector.projection is model.bridges["audio"].projector.projection

    def test_inspect_says_the_same(self, partial):
        coverage = inspect(partial)
        assert coverage.ok and coverage.to_dict()["parameters"]["percent"] == 100.0
        assert coverage.to_dict()["parameters"]["filled"] == 110_206_848

    def test_beats(self, tmp_path):
        state = names.real(names.beats())
        table = state[f"encoder.layers.0.{TABLE}"]
        state |= {f"encoder.layers.{i}.{TABLE}": table for i in range(12)}  # one storage, written once, named 12 times
        torch.save({"cfg": names.BEATS_CFG, "model": state}, tmp_path / "BEATs_iter3_plus_AS2M.pt")
        model = Beats(BeatsConfig(weights=str(tmp_path / "BEATs_iter3_plus_AS2M.pt"), dtype="float16"))
        assert sum(p.numel() for p in model.parameters()) == names.count(names.beats()) - 11 * 320 * 12
        for name, tensor in model.state_dict().items():
            assert tensor.dtype == torch.float16 and torch.equal(tensor.flatten()[-1], state[name].half().flatten()[-1])
        del state["encoder.layers.3.fc1.weight"]
        torch.save({"cfg": names.BEATS_CFG, "model": state}, tmp_path / "less.pt")
        with pytest.raises(ValueError, match=r"less.pt' does not fit .*: missing \(1\): encoder.layers.3.fc1.weight"):
            Beats(BeatsConfig(weights=str(tmp_path / "less.pt")))

    @pytest.mark.parametrize("prefix", ["", "visual.trunk."])
    def test_two_blocks_of_eva_vit_g(self, tmp_path, prefix):
        state = names.real(names.eva(3, prefix=prefix), torch.float16)
        torch.save(state, tmp_path / "eva_vit_g.pth")
        model = EvaVit(EvaVitConfig(depth=2, weights=str(tmp_path / "eva_vit_g.pth"), dtype="float16"))
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor.half().flatten()[-1], state[prefix + name].flatten()[-1]), name
            assert (tensor.dtype == torch.float32) == (
                "norm" in name or name.endswith(("q_bias", "v_bias", "cls_token", "pos_embed"))
            ), name
