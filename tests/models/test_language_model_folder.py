"""Model folders of others: nothing in them runs, and whatever is wrong with them is one line that names the file."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from chatbridge.models import CausalLM, CausalLMConfig
from chatbridge.planning.model import find_architecture
from chatbridge.processors.tokenizer import load_tokenizer
from chatbridge.weights.__main__ import main
from tests import tiny


@pytest.fixture
def folder(tmp_path):
    return tiny.write_llm(tmp_path / "llm")


@pytest.fixture
def fast(tmp_path):
    """A tokenizer that is not SentencePiece's, with a padding token behind the table of its model."""
    vocabulary = {"[UNK]": 0, "<s>": 1, "</s>": 2, "a": 3, "dog": 4}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "[UNK]", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=model, **names).save_pretrained(tmp_path / "fast")
    return tmp_path / "fast"


def load(folder):
    return CausalLM(CausalLMConfig(path=str(folder)))


def edit(file: Path, **changes):
    plain = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(plain | changes))


class TestNothingRuns:
    @pytest.fixture(autouse=True)
    def trap(self, folder, fast, tmp_path, monkeypatch):
        """Code beside the weights that tells when it runs, and somebody who says yes to everything."""
        code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        for name in ("configuration_own.py", "modeling_own.py", "tokenization_own.py"):
            (folder / name).write_text(code)
            (fast / name).write_text(code)
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
        yield
        assert not (tmp_path / "ran").exists()

    OWN = {"AutoConfig": "configuration_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    OWN_TOKENIZER = {"AutoTokenizer": ["tokenization_own.Tokenizer", None]}

    def test_a_family_that_transformers_knows_is_its_own(self, folder):
        edit(folder / "config.json", auto_map=self.OWN)
        assert type(load(folder).model).__name__ == "LlamaForCausalLM"
        assert find_architecture(CausalLMConfig(path=str(folder)))[0].model_type == "llama"
        assert main(["inspect", str(folder)]) == 0

    @pytest.mark.parametrize("family", ["own", None])
    def test_one_that_it_does_not_know_is_refused(self, folder, family, capsys):
        edit(folder / "config.json", auto_map=self.OWN, model_type=family)
        for attempt in (load, lambda f: find_architecture(CausalLMConfig(path=str(f)))):
            with pytest.raises(ValueError, match="its own code .auto_map. is never run, take a model that") as error:
                attempt(folder)
            assert "\n" not in str(error.value) and str(folder) in str(error.value)
        assert main(["inspect", str(folder)]) == 1
        assert "is never run" in capsys.readouterr().out

    def test_a_tokenizer_that_transformers_knows_is_its_own(self, fast):
        edit(fast / "tokenizer_config.json", auto_map=self.OWN_TOKENIZER)
        assert load_tokenizer(fast).encode("a dog") == [3, 4]

    def test_a_tokenizer_that_it_does_not_know_is_refused(self, fast):
        edit(fast / "tokenizer_config.json", auto_map=self.OWN_TOKENIZER, tokenizer_class="OwnTokenizer")
        with pytest.raises(ValueError, match="code of its own .auto_map in tokenizer_config.json., which is never run"):
            load_tokenizer(fast)


CONFIGS = {
    "a list": "[1, 2]",
    "nothing": "",
    "deep": "[" * 100_000,
    "a long number": '{"model_type": "llama", "vocab_size": 1' + "0" * 5000 + "}",
    "not UTF-8": b'{"model_type": "ll\xe4ma"}',
    "LFS": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "unknown family": {"model_type": "nothing"},
    "no family": {"model_type": None},
    "family of another type": {"model_type": ["llama"]},
    "negative": {"hidden_size": -48},
    "no heads": {"num_attention_heads": 0},
    "odd heads": {"num_attention_heads": 7},
    "text": {"hidden_size": "large"},
    "null": {"hidden_size": None},
    "a fraction": {"num_hidden_layers": 2.5},
    "vocabulary": {"vocab_size": 10**12},
    "layers": {"num_hidden_layers": 10**9},
    "hidden activation": {"hidden_act": "nothing"},
    "rope": {"rope_scaling": {"rope_type": "nothing"}},
    "rope of another type": {"rope_scaling": 3},
    "end": {"eos_token_id": "</s>"},
}


@pytest.mark.parametrize("damage", CONFIGS)
def test_a_damaged_config_is_one_line(folder, damage, capsys):
    content, file = CONFIGS[damage], folder / "config.json"
    (folder / "generation_config.json").unlink()
    if isinstance(content, dict):
        edit(file, **content)
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="llm") as error:
        load(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 800
    main(["inspect", str(folder)])
    assert "Traceback" not in capsys.readouterr().err


def test_numbers_that_json_has_not_and_attentions_that_a_family_has_not(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 24, "head_dim": 8}
    mamba = {"state_size": 8, "num_heads": 4, "n_groups": 1}
    for family, more in (("mamba2", mamba), ("gemma2", {"num_attention_heads": 2, "num_key_value_heads": 2})):
        settings = AutoConfig.for_model(family, **sizes | more)
        AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / family)
    assert "__float__" in (tmp_path / "mamba2" / "config.json").read_text()
    for family in ("mamba2", "gemma2"):
        with pytest.raises(ValueError, match=f"{family}.*; set model.llm.attention to eager"):
            load(tmp_path / family)
        language = CausalLM(CausalLMConfig(path=str(tmp_path / family), attention="eager"))
        assert getattr(language.model.config, "time_step_limit", [0, float("inf")])[1] == float("inf")


def test_sizes_that_no_machine_holds_are_refused_before_memory_is_taken(folder):
    edit(folder / "config.json", vocab_size=10**12)
    with pytest.raises(ValueError, match="its sizes ask for .* GiB, more than there is"):
        CausalLM(CausalLMConfig(path=str(folder), random_weights=True))
    with pytest.raises(ValueError, match="config.json describes .* parameters, its files hold"):
        load(folder)
    # A table of the square of its positions.
    edit(folder / "config.json", vocab_size=600, model_type="gpt_bigcode", max_position_embeddings=100_000)
    with pytest.raises(ValueError, match="its sizes ask for .* GiB, more than there is"):
        load(folder)


TOKENIZERS = [
    ("tokenizer_config.json", "[]"), ("tokenizer_config.json", "{"), ("tokenizer_config.json", '{"bos_token": 5}'),
    ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'), ("added_tokens.json", '{"<x>": "many"}'),
    ("tokenizer_config.json", '{"added_tokens_decoder": {"one": {"content": "a"}}}'), ("added_tokens.json", "[]"),
    ("added_tokens.json", '{"<x>": -1}'), ("added_tokens.json", '{"<x>": ' + "9" * 5000 + "}"),
    ("added_tokens.json", '{"<x>": true}'), ("special_tokens_map.json", "null"), ("added_tokens.json", "[" * 100_000),
    ("special_tokens_map.json", '{"eos_token": ["</s>"]}'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), TOKENIZERS)
def test_damaged_side_files_of_a_tokenizer_are_named(folder, fast, name, text):
    for one in (folder, fast):
        (one / name).write_text(text)
        with pytest.raises(ValueError, match=name) as error:
            load_tokenizer(one)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "LFS", "pipe", "folder"])
def test_a_damaged_tokenizer_is_one_line(folder, fast, name, damage):
    one = folder if name == "tokenizer.model" else fast
    file = one / name
    content = file.read_bytes()
    file.unlink()
    if damage == "pipe":
        os.mkfifo(file)
    elif damage == "folder":
        file.mkdir()
    else:
        lfs = b"version https://git-lfs.github.com/spec/v1\n"
        file.write_bytes({"cut": content[:200], "empty": b"", "noise": bytes(range(256)) * 9, "LFS": lfs}[damage])
    with pytest.raises(ValueError, match=str(one)) as error:
        load_tokenizer(one)
    assert "\n" not in str(error.value) and (damage != "LFS" or "git lfs pull" in str(error.value))


def test_half_an_emoji_among_the_tokens(folder):
    (folder / "added_tokens.json").write_text('{"\\ud83d": 600}')
    assert load_tokenizer(folder).encode("a \ufffd")[-1] == 600


class TestPaddingBehindTheTable:
    """As Llama 2 was published: a token that is never embedded, and has no row."""

    def test_sentencepiece(self, folder):
        (folder / "added_tokens.json").write_text('{"<pad>": 600}')
        tokenizer, plain = load_tokenizer(folder), load_tokenizer(tiny.TOKENIZER)
        assert (tokenizer.vocab_size, tokenizer.pad_id) == (600, 2)
        assert tokenizer.encode("a <pad> b") == plain.encode("a <pad> b") and max(tokenizer.encode("<pad>")) < 600

    def test_any_other(self, fast):
        (fast / "config.json").write_text('{"model_type": "llama", "vocab_size": 5}')
        tokenizer = load_tokenizer(fast)
        assert (tokenizer.vocab_size, tokenizer.pad_id) == (5, 2)
        assert tokenizer.encode("a <pad> dog") == [3, 4]

    def test_a_run_works_and_another_token_is_refused(self, folder, tmp_path, capsys):
        import train

        tree = tiny.make_config(tmp_path, max_steps=1)
        yaml = str(tiny.write_yaml(tmp_path, tree))
        (folder / "added_tokens.json").write_text('{"<pad>": 600}')
        assert train.main(["--cfg-path", yaml]) == 0
        (folder / "added_tokens.json").write_text('{"<image>": 600}')
        assert train.main(["--cfg-path", yaml, "--options", f"run.output_dir={tmp_path / 'o'}"]) == 1
        assert "has 601 tokens and language model" in capsys.readouterr().err

    def test_rows_of_its_own_stay_in_use(self, tmp_path):
        """Vicuna v0's table has a row for its padding token."""
        folder = Path(shutil.copytree(tiny.TOKENIZER, tmp_path / "v0"))
        (folder / "added_tokens.json").write_text('{"[PAD]": 600}')
        (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 601}')
        assert load_tokenizer(folder).vocab_size == 601


def test_a_plan_tells_of_a_damaged_tokenizer(tmp_path, capsys):
    import train

    yaml = str(tiny.write_yaml(tmp_path, tiny.make_config(tmp_path)))
    (tmp_path / "llm" / "tokenizer.model").write_bytes(b"noise")
    assert train.main(["--cfg-path", yaml, "--plan"]) == 1
    assert "tokenizer.model: is not a SentencePiece model" in capsys.readouterr().out
