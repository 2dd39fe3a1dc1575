"""``inspect`` and the loading of a run: what fits, what is left out by name, and what is in the wrong place."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml

import train
from chatbridge.common.registry import ENCODERS
from chatbridge.common.schema import bind
from chatbridge.models import BeatsConfig, ChatBridge, ChatBridgeConfig, EvaVitConfig, load_checkpoint, to_original
from chatbridge.weights import WeightsError
from chatbridge.weights.__main__ import main
from chatbridge.weights.inspection import inspect
from chatbridge.weights.language_model import check_vocabulary, describe, tokenizer_size
from tests import tiny
from tests.toy_model import llm, model

EVA = EvaVitConfig(**{k: v for k, v in tiny.EVA.items() if k != "name"})
BEATS = BeatsConfig(**{k: v for k, v in tiny.BEATS.items() if k != "name"})


@pytest.fixture
def files(tmp_path):
    """Toy files of every kind, and a YAML that names them in the right places."""
    tree = tiny.make_config(tmp_path, max_steps=2)
    bridges = tree["model"]["bridges"]
    bridges["vision"]["perceiver"]["encoder_width"] = bridges["audio"]["perceiver"]["encoder_width"] = 32
    bridges["audio"]["adapter"] = "always"
    tree["model"]["share_perceivers"] = True
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    built = ChatBridge(bind(ChatBridgeConfig, tree["model"]))
    torch.save(built.bridges["vision"].encoder.state_dict(), tmp_path / "eva.pth")
    torch.save({"model": built.bridges["audio"].encoder.state_dict()}, tmp_path / "beats.pt")
    torch.save({"model": to_original(built), "epoch": 1}, tmp_path / "checkpoint_1.pth")
    for name, part in (("vision", "eva.pth"), ("audio", "beats.pt")):
        bridges[name]["encoder"]["weights"] = str(tmp_path / part)
    tree["model"]["weights"] = [str(tmp_path / "checkpoint_1.pth")]
    (tmp_path / "named.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path, tree


def names_of(tree, **places):
    """The tree with other files in some places."""
    bridges = tree["model"]["bridges"]
    for place, file in places.items():
        if place == "llm":
            tree["model"]["llm"]["path"] = str(file)
        elif place == "checkpoint":
            tree["model"]["weights"] = [str(file)]
        else:
            bridges[place]["encoder"]["weights"] = str(file)
    return tree


def errors(capsys):
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return [line for line in said.splitlines() if line.startswith("error:")]


class TestCommand:
    def test_all_files_of_a_configuration(self, files, capsys):
        folder, _ = files
        assert main(["inspect", "--cfg-path", str(folder / "named.yaml"), "--json"]) == 0
        found = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
        assert sorted(found) == [
            "bridges.audio.encoder.weights",
            "bridges.vision.encoder.weights",
            "llm.path",
            "weights[0]",
        ]
        assert all(row["ok"] and row["parameters"]["percent"] == 100.0 for row in found.values())
        assert found["weights[0]"]["format"] == "original ChatBridge checkpoint, partial"

    def test_one_file_against_a_configuration(self, files, capsys):
        folder, _ = files
        assert main(["inspect", str(folder / "beats.pt"), "--cfg-path", str(folder / "run.yaml")]) == 0
        said = capsys.readouterr().out
        assert "BEATs audio encoder" in said and "(100.00 %)" in said and said.rstrip().endswith("ok")

    def test_a_toy_is_not_the_published_model(self, files, capsys):
        folder, _ = files
        assert main(["inspect", str(folder / "eva.pth"), "--json"]) == 1
        (row,) = json.loads(capsys.readouterr().out)
        assert "hold 1 blocks and depth is 39" in row["problems"][0] and row["mismatched"] and row["missing"]
        assert not row["ok"] and row["parameters"]["percent"] < 1

    def test_a_file_that_lacks_something(self, files, capsys):
        folder, _ = files
        payload = torch.load(folder / "checkpoint_1.pth", weights_only=True)
        del payload["model"]["llama_proj.bias"]
        payload["model"]["llama_proj.scale"] = torch.ones(1)
        torch.save(payload, folder / "cut.pth")
        assert main(["inspect", str(folder / "cut.pth"), "--cfg-path", str(folder / "run.yaml")]) == 1
        said = capsys.readouterr().out
        assert "missing     1: llama_proj.bias" in said and "unexpected  1: llama_proj.scale" in said
        assert "99." in said and "does not load" in said

    def test_nothing_to_inspect_and_nothing_there(self, files, capsys):
        assert main(["inspect"]) == 1
        assert errors(capsys) == ["error: name at least one FILE, or a configuration (--cfg-path)"]
        assert main(["inspect", str(files[0] / "nowhere.pth")]) == 1
        assert "nowhere.pth' do not exist" in capsys.readouterr().out

    def test_our_own_checkpoint_by_the_yaml_beside_it(self, files, capsys):
        folder, tree = files
        assert tiny.run(folder, tree) == 0
        capsys.readouterr()
        assert main(["inspect", str(folder / "output")]) == 0
        assert "checkpoint of this project" in capsys.readouterr().out
        assert load_checkpoint(ChatBridge(bind(ChatBridgeConfig, tree["model"])), folder / "output").ok


class TestWrongPlace:
    @pytest.mark.parametrize(
        ("place", "file", "said"),
        [
            (
                "vision",
                "beats.pt",
                "is a BEATs audio encoder, not a vision encoder; a configuration names it under enc",
            ),
            ("audio", "eva.pth", "is an EVA-ViT vision encoder, not an audio encoder"),
            ("vision", "checkpoint_1.pth", "is an original ChatBridge checkpoint, not a vision encoder"),
            ("checkpoint", "eva.pth", "is an EVA-ViT vision encoder, not a whole model"),
            ("checkpoint", "llm", "is a LLaMA or Vicuna language model, not a whole model; a configuration names it"),
            ("audio", "llm", "is a LLaMA or Vicuna language model, not an audio encoder"),
            ("llm", "media", "media' is not the folder of a language model: it has no config.json"),
            ("checkpoint", "odd.pth", "is not a whole model that ChatBridge knows: it holds foo, bar"),
        ],
    )
    def test_each(self, files, capsys, place, file, said):
        folder, tree = files
        torch.save({"foo": torch.ones(1), "bar": torch.ones(1)}, folder / "odd.pth")
        path = tiny.write_yaml(folder, names_of(tree, **{place: folder / file}), "wrong.yaml")
        assert train.main(["--cfg-path", str(path)]) == 1
        (line,) = errors(capsys)
        assert said in line
        assert main(["inspect", "--cfg-path", str(path)]) == 1
        output = capsys.readouterr()
        assert said in output.out + output.err

    def test_files_of_a_language_model_with_an_encoder_inside(self, files, capsys):
        folder, tree = files
        shutil.copytree(folder / "llm", folder / "other")
        from safetensors.torch import load_file, save_file

        save_file(torch.load(folder / "eva.pth"), folder / "other" / "model.safetensors")
        path = tiny.write_yaml(folder, names_of(tree, llm=folder / "other"), "wrong.yaml")
        assert train.main(["--cfg-path", str(path)]) == 1
        assert "is an EVA-ViT vision encoder, not a language model" in errors(capsys)[0]
        assert load_file(folder / "other" / "model.safetensors")


class TestNothingHalfLoaded:
    @pytest.mark.parametrize("damage", ["nan", "missing", "shape"])
    def test_a_checkpoint(self, damage, tmp_path):
        m, source = model(1, share_perceivers=True), model(2, share_perceivers=True)
        state = {name: tensor.clone() for name, tensor in to_original(source).items()}
        last = list(state)[-1]
        if damage == "nan":
            state[last].view(-1)[-1] = float("nan")
        elif damage == "missing":
            del state[last]
        else:
            state[last] = state[last][None]
        torch.save({"model": state}, tmp_path / "bad.pth")
        before = {name: tensor.clone() for name, tensor in m.state_dict().items()}
        with pytest.raises(WeightsError, match=f"bad.pth'.*{last}"):
            load_checkpoint(m, tmp_path / "bad.pth")
        assert all(torch.equal(tensor, before[name]) for name, tensor in m.state_dict().items())

    def test_a_resumed_checkpoint_with_nan(self):
        m = model()
        state = {name: tensor.clone() for name, tensor in m.trainable_state().items()}
        state["bridges.audio.projector.projection.bias"][0] = float("nan")
        with pytest.raises(WeightsError, match="bridges.audio.projector.projection.bias' holds 1 values"):
            m.load_trainable(state)

    @pytest.mark.parametrize("kind", ["eva_vit", "beats"])
    def test_an_encoder_is_built_whole(self, kind, tmp_path):
        """On the meta device first: no tensor of the result is left there, and the frozen state is the file's."""
        made = replace({"eva_vit": EVA, "beats": BEATS}[kind], dtype="float16")
        source = ENCODERS.build(made)
        torch.save(source.state_dict(), tmp_path / "w.pth")
        random = torch.get_rng_state()
        built = ENCODERS.build(replace(made, weights=str(tmp_path / "w.pth")))
        assert torch.equal(random, torch.get_rng_state()), "no time is spent on random numbers that files replace"
        assert not any(t.is_meta for t in (*built.parameters(), *built.buffers()))
        assert {n: t.dtype for n, t in built.state_dict().items()} == {
            n: t.dtype for n, t in source.state_dict().items()
        }
        assert all(torch.equal(t, source.state_dict()[n]) for n, t in built.state_dict().items())

    def test_beats_with_two_tables(self, tmp_path):
        """All layers share one table of positions; a file whose copies differ is of some other model."""
        config = replace(BEATS, depth=2)
        state = ENCODERS.build(config).state_dict()
        table = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
        state[table.format(1)] = state[table.format(0)].clone()
        torch.save({"model": state}, tmp_path / "same.pt")
        ENCODERS.build(replace(config, weights=str(tmp_path / "same.pt")))
        state[table.format(1)][0, 0] += 1
        torch.save({"model": state}, tmp_path / "other.pt")
        with pytest.raises(WeightsError, match="other.pt': encoder.layers.1.* and encoder.layers.0.* differ"):
            ENCODERS.build(replace(config, weights=str(tmp_path / "other.pt")))


class TestVocabulary:
    @pytest.mark.parametrize(
        ("tokens", "rows", "hint"),
        [
            (32000, 32001, "the weights are Vicuna v0's and the tokenizer a later one's"),
            (32001, 32000, "the tokenizer is Vicuna v0's and the weights are a later one's"),
            (601, 600, "take the tokenizer from the model's own folder"),
            (598, 601, "take the tokenizer from the model's own folder"),
        ],
    )
    def test_another_releases_tokenizer(self, tokens, rows, hint):
        with pytest.raises(
            WeightsError, match=f"tokenizer 'a' has {tokens} .* model 'b' has {rows} embeddings; {hint}"
        ):
            check_vocabulary(tokens, rows, "a", "b")

    @pytest.mark.parametrize(("tokens", "rows"), [(32001, 32001), (32000, 32000), (32000, 32064)])
    def test_the_models_own(self, tokens, rows):
        check_vocabulary(tokens, rows, "a", "b")

    def test_added_tokens_count(self, tmp_path):
        folder = tiny.write_llm(tmp_path / "llm")
        assert tokenizer_size(folder) == 600
        (folder / "added_tokens.json").write_text('{"<image>": 600}')
        assert tokenizer_size(folder) == 601
        coverage = inspect(folder)
        assert not coverage.ok and "has 601 tokens" in coverage.complaint
        (folder / "added_tokens.json").write_text('{"<pad>": 600}')  # as Llama 2 was published: nothing embeds it
        assert tokenizer_size(folder) == 600
        assert inspect(folder).ok

    def test_a_run_refuses_it_before_reading_weights(self, files, capsys):
        folder, tree = files
        shutil.copytree(tiny.TOKENIZER, folder / "tokenizer")
        (folder / "tokenizer" / "added_tokens.json").write_text('{"[PAD]": 600}')
        tree["tokenizer"] = str(folder / "tokenizer")
        path = tiny.write_yaml(folder, tree, "v0.yaml")
        assert train.main(["--cfg-path", str(path)]) == 1
        (line,) = errors(capsys)
        assert "tokenizer' has 601 tokens and language model" in line and "has 600 embeddings" in line

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"vocab_size": 32001, "rms_norm_eps": 1e-6}, "Vicuna v0"),
            ({"vocab_size": 32000, "rms_norm_eps": 1e-6}, "v1.1, v1.3"),
            ({"vocab_size": 32000, "rms_norm_eps": 1e-5}, "v1.5"),
        ],
    )
    def test_which_vicuna(self, settings, said):
        assert said in describe({"model_type": "llama", **settings})


class TestOtherFiles:
    def test_minigpt4_starts_the_projection_and_nothing_else(self, tmp_path):
        m = model(1)
        before = {name: tensor.clone() for name, tensor in m.state_dict().items()}
        torch.save(
            {"model": {"llama_proj.weight": torch.ones(16, 8), "llama_proj.bias": torch.ones(16)}}, tmp_path / "m.pth"
        )
        coverage = load_checkpoint(m, tmp_path / "m.pth")
        changed = {name for name, tensor in m.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed == {"bridges.visual.projector.projection.weight", "bridges.visual.projector.projection.bias"}
        assert coverage.tensors == (2, 2) and coverage.kept

    def test_blip2_starts_the_vision_perceiver_only(self, tmp_path):
        m, other = model(1), model(2, share_perceivers=True)
        state = {n: t for n, t in to_original(other, full=True).items() if n.startswith(("Qformer.", "ln_vision."))}
        state |= {"query_tokens": torch.ones(1, 3, 8), "t5_proj.weight": torch.ones(4, 8)}
        audio = {n: t.clone() for n, t in m.bridges["audio"].state_dict().items()}
        torch.save({"model": state}, tmp_path / "blip2.pth")
        load_checkpoint(m, tmp_path / "blip2.pth")
        assert (m.bridges["visual"].projector.query_tokens == 1).all()
        assert all(torch.equal(t, audio[n]) for n, t in m.bridges["audio"].state_dict().items())

    def test_a_full_original_checkpoint_brings_the_frozen_parts(self, tmp_path):
        m, other = model(1, share_perceivers=True, language=llm()), model(2, share_perceivers=True, language=llm())
        torch.save({"model": to_original(other, full=True)}, tmp_path / "full.pth")
        coverage = load_checkpoint(m, tmp_path / "full.pth")
        assert not coverage.kept and coverage.kind.startswith("original ChatBridge checkpoint, full")
        assert all(torch.equal(t, other.state_dict()[n]) for n, t in m.state_dict().items())

    def test_tied_embeddings_stay_tied(self, tmp_path):
        from chatbridge.models import CausalLM, CausalLMConfig

        language = llm(tie_word_embeddings=True)
        language.model.save_pretrained(tmp_path)
        again = CausalLM(CausalLMConfig(path=str(tmp_path)))
        assert again.model.lm_head.weight is again.model.get_input_embeddings().weight
        assert torch.equal(again.model.lm_head.weight, language.model.lm_head.weight)
        coverage = inspect(tmp_path)  # the file holds the shared table once
        assert coverage.ok and "lm_head.weight" not in coverage.missing

    def test_a_family_that_transformers_renames(self, tmp_path):
        from transformers import GPT2Config, GPT2LMHeadModel

        from chatbridge.models import CausalLM, CausalLMConfig

        gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2))
        gpt2.transformer.save_pretrained(tmp_path)  # names without the leading "transformer."
        gpt2.config.save_pretrained(tmp_path)
        again = CausalLM(CausalLMConfig(path=str(tmp_path)))
        assert torch.equal(again.model.transformer.wte.weight, gpt2.transformer.wte.weight)
        (tmp_path / "model.safetensors").unlink()
        state = gpt2.transformer.state_dict()
        del state["ln_f.weight"]
        gpt2.transformer.save_pretrained(tmp_path, state_dict=state)
        with pytest.raises(WeightsError, match="does not fit its config.json: missing: .*ln_f.weight"):
            CausalLM(CausalLMConfig(path=str(tmp_path)))
