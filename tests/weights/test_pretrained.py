"""save_pretrained and from_pretrained: the whole model goes round; damage, tampering and absence are told."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from chatbridge import register_all
from chatbridge.common.config import load_config
from chatbridge.common.registry import MODELS
from chatbridge.models import CausalLM, CausalLMConfig, ChatBridge
from chatbridge.weights import WeightsError
from chatbridge.weights.__main__ import main
from chatbridge.weights.pretrained import load_processors
from tests import tiny
from tests.toy_model import batch, llm, model


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A model as a run builds it, with its configuration."""
    register_all()
    folder = tmp_path_factory.mktemp("run")
    tree = tiny.make_config(folder)
    tree["model"]["llm"]["dtype"] = "bfloat16"
    for bridge in tree["model"]["bridges"].values():
        bridge["perceiver"]["encoder_width"] = 32
    tree["model"]["share_perceivers"] = True
    loaded = load_config(tiny.write_yaml(folder, tree))
    return MODELS.build(loaded.config.model), loaded.config


@pytest.fixture
def saved(built, tmp_path):
    model, config = built
    return model.save_pretrained(tmp_path / "saved", processors=config.processors, max_shard_size="150KB")


def test_goes_round(built, saved, tmp_path):
    again = ChatBridge.from_pretrained(saved)
    state, expected = again.state_dict(), built[0].state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(t, expected[n]) and t.dtype == expected[n].dtype for n, t in state.items())
    assert not any(t.is_meta for t in (*again.parameters(), *again.buffers())) and not again.training
    assert again.bridges["vision"].projector.projection is again.bridges["audio"].projector.projection
    assert {n for n, p in again.named_parameters() if p.requires_grad} == set(built[0].trainable_state())
    assert len(list(saved.glob("*.safetensors"))) > 2
    second = again.save_pretrained(tmp_path / "second")
    assert json.loads((second / "config.json").read_text())["model"] == json.loads(
        (saved / "config.json").read_text())["model"]  # fmt: skip


def test_processors_and_tokenizer_come_along(built, saved):
    processors = load_processors(saved)
    assert sorted(processors) == ["audio", "image", "video"]
    assert processors["audio"].config == built[1].processors["audio"]
    assert (saved / "llm" / "tokenizer.model").read_bytes() == (tiny.TOKENIZER / "tokenizer.model").read_bytes()


def test_no_path_of_this_machine(saved):
    text = "".join(file.read_text() for file in saved.rglob("*.json"))
    assert str(saved.parent) not in text and "/tmp" not in text


def test_it_answers_the_same(tmp_path):
    a = model(3, language=llm(tie_word_embeddings=True))
    a.save_pretrained(tmp_path / "a", tokenizer=tiny.TOKENIZER)
    b = ChatBridge.from_pretrained(tmp_path / "a")
    assert b.llm.model.lm_head.weight is b.llm.model.get_input_embeddings().weight
    assert a(batch()).loss.item() == b(batch()).loss.item() and b.llm.eos_ids == a.llm.eos_ids


def test_inspect(saved, capsys):
    assert main(["inspect", str(saved)]) == 0
    said = capsys.readouterr().out
    assert "whole ChatBridge of this project" in said and "(100.00 %)" in said


class TestHub:
    """The hub's cache on disk stands for the hub; no network is asked."""

    @pytest.fixture
    def hub(self, saved, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        repository = tmp_path / "hub" / "models--someone--chatbridge-toy"
        commit = "0123456789" * 4
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        shutil.copytree(saved, repository / "snapshots" / commit)

    def test_offline_from_the_cache(self, hub, built):
        again = ChatBridge.from_pretrained("someone/chatbridge-toy")
        expected = built[0].state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())

    @pytest.mark.parametrize("local", [True, False])
    def test_not_in_the_cache(self, hub, local):
        with pytest.raises(
            WeightsError, match="'someone/other' is not in the hub's cache .* hf download someone/other"
        ):
            ChatBridge.from_pretrained("someone/other", local_files_only=local)

    @pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/no/where/at/all"])
    def test_no_folder_and_no_name(self, name):
        with pytest.raises(WeightsError, match="no folder '.*', and it is no name on the hub"):
            ChatBridge.from_pretrained(name)


class TestDamage:
    def file(self, saved):
        return sorted(saved.glob("*.safetensors"))[0]

    def test_an_altered_tensor(self, saved, capsys):
        file = self.file(saved)
        content = bytearray(file.read_bytes())
        content[-100] ^= 1
        file.write_bytes(content)
        with pytest.raises(WeightsError, match="was altered: its SHA-256 is not that of config.json"):
            ChatBridge.from_pretrained(saved)
        assert main(["inspect", str(saved)]) == 1
        assert "was altered" in capsys.readouterr().out
        ChatBridge.from_pretrained(saved, verify=False)

    def test_cut_and_missing(self, saved):
        file = self.file(saved)
        content = file.read_bytes()
        file.write_bytes(content[:-5])
        with pytest.raises(WeightsError, match=f"{file.name}' has .* bytes and not"):
            ChatBridge.from_pretrained(saved)
        with pytest.raises(WeightsError, match=file.name):
            ChatBridge.from_pretrained(saved, verify=False)
        file.unlink()
        with pytest.raises(WeightsError, match=f"lacks {file.name}"):
            ChatBridge.from_pretrained(saved)

    def test_another_folder(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
        with pytest.raises(WeightsError, match="was not written by save_pretrained"):
            ChatBridge.from_pretrained(tmp_path)

    def test_an_edited_config(self, saved):
        file = saved / "config.json"
        file.write_text(file.read_text().replace('"num_queries": 4', '"num_queries": 5'))
        with pytest.raises(WeightsError, match=r"is incomplete: wrong shape \(2\): bridges.*query_tokens"):
            ChatBridge.from_pretrained(saved)
        file.write_text(file.read_text().replace('"depth": 1', '"deepth": 1'))
        with pytest.raises(ValueError, match="did you mean 'depth'"):
            ChatBridge.from_pretrained(saved)


class TestSaving:
    def test_never_over_something(self, built, saved):
        with pytest.raises(WeightsError, match="is not empty; name a new one"):
            built[0].save_pretrained(saved)

    def test_without_a_tokenizer(self, tmp_path):
        with pytest.raises(WeightsError, match="no tokenizer in"):
            model().save_pretrained(tmp_path / "x")
        assert not (tmp_path / "x").exists()

    def test_a_language_model_in_memory(self, tmp_path):
        from transformers import LlamaConfig

        language = CausalLM.from_config(LlamaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1,
                                                    num_attention_heads=2, intermediate_size=24))  # fmt: skip
        model(language=language).save_pretrained(tmp_path / "x", tokenizer=tiny.TOKENIZER)
        assert ChatBridge.from_pretrained(tmp_path / "x").llm.vocab_size == 40


class TestWhereTextsEnd:
    """Llama 3 lists its end tokens in generation_config.json alone."""

    @pytest.fixture
    def folder(self, tmp_path):
        folder = tiny.write_llm(tmp_path / "llm")
        (folder / "generation_config.json").unlink()
        return folder

    def load(self, folder):
        return CausalLM(CausalLMConfig(path=str(folder)))

    def test_they_go_round(self, folder, tmp_path):
        settings = json.loads((folder / "config.json").read_text())
        # Sampling settings where transformers does not want them, and such as it calls invalid (Vicuna 1.5).
        (folder / "config.json").write_text(json.dumps(settings | {"temperature": 0.9, "max_length": 4096}))
        told = {"eos_token_id": [2, 7], "temperature": 0.9, "top_p": 0.6, "max_length": 4096}
        (folder / "generation_config.json").write_text(json.dumps(told))
        language = self.load(folder)
        assert language.eos_ids == [2, 7]
        model(language=language).save_pretrained(tmp_path / "saved", tokenizer=folder)
        again = ChatBridge.from_pretrained(tmp_path / "saved")
        assert again.llm.eos_ids == [2, 7]
        again.save_pretrained(tmp_path / "twice")
        assert ChatBridge.from_pretrained(tmp_path / "twice").llm.eos_ids == [2, 7]

    def test_without_one_it_is_the_configurations(self, folder):
        (folder / "generation_config.json").write_text("{}")
        assert self.load(folder).eos_ids == [2]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "generation_config.json: is not valid JSON"),
            ("[]", "generation_config.json: is not a JSON object"),
            ('{"eos_token_id": "</s>"}', "generation_config.json: eos_token_id '</s>' is neither an id nor a list"),
            ('{"eos_token_id": [2, true]}', "is neither an id nor a list of ids"),
            ('{"eos_token_id": 2.5}', "is neither an id nor a list of ids"),
        ],
    )
    def test_what_it_cannot_be(self, folder, text, said):
        (folder / "generation_config.json").write_text(text)
        with pytest.raises(WeightsError) as error:
            self.load(folder)
        assert said in str(error.value) and "\n" not in str(error.value)

    def test_one_outside_the_table_is_told_and_ends_nothing(self, folder, caplog):
        (folder / "generation_config.json").write_text('{"eos_token_id": [2, 600, -1]}')
        assert self.load(folder).eos_ids == [2]
        assert "eos_token_id [600, -1] is not among the model's 600 ids" in caplog.text
