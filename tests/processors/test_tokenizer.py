"""Tokenizers from model folders of several makes."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chatbridge.processors.tokenizer import HfTokenizer, SentencePieceTokenizer, load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(GOLDEN, tmp_path / "llm"))


def test_added_tokens(folder):
    """Vicuna v0 adds a padding token behind LLaMA's vocabulary; the original still pads with EOS."""
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": 600}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "[PAD]"}}))
    tokenizer = load_tokenizer(folder)
    plain = load_tokenizer(GOLDEN)
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (601, plain.eos_id)
    assert tokenizer.encode("a[PAD]the") == [*plain.encode("a"), 600, *plain.encode("the")]
    assert tokenizer.decode([*plain.encode("a"), 600]) == "a"
    assert tokenizer.decode([*plain.encode("a"), 600], skip_special=False) == "a[PAD]"


def test_declared_names_win(folder):
    config = {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}}
    config["added_tokens_decoder"] = {"600": {"content": "<|begin|>"}, "601": {"content": "<|end|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (600, 601, 602)


def test_the_model_file_alone_is_enough(tmp_path):
    shutil.copy(GOLDEN / "tokenizer.model", tmp_path)
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.encode("a man") == load_tokenizer(GOLDEN).encode("a man")


def test_any_other_tokenizer(tmp_path):
    vocabulary = {"[UNK]": 0, "<s>": 1, "</s>": 2, "a": 3, "dog": 4}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="[UNK]"
    ).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, HfTokenizer)
    assert tokenizer.encode("a dog") == [3, 4]
    assert tokenizer.decode([1, 3, 4]) == "a dog"
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 2, 2, 5)
    assert pickle.loads(pickle.dumps(tokenizer)).encode("dog") == [4]


def test_what_is_no_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="none does not exist"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(ValueError, match="no tokenizer can be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"tokenizer\.model: is not a SentencePiece model"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no SentencePiece model"):
        SentencePieceTokenizer(tmp_path / "other.model")


def test_broken_side_files_are_named(folder):
    (folder / "added_tokens.json").write_text("{")
    with pytest.raises(ValueError, match=r"added_tokens\.json: is not valid JSON"):
        load_tokenizer(folder)


def test_ids_outside_the_vocabulary():
    with pytest.raises(ValueError, match="token id 600 is outside the vocabulary of 600"):
        load_tokenizer(GOLDEN).decode([600])
