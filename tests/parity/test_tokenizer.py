"""The tokenizer, against ids of the original's (slow LLaMA tokenizer, padding with EOS)."""

from __future__ import annotations

import pickle


def test_ids(golden_json, tokenizer):
    case = golden_json("tokenizer_samples")
    for sample in case["samples"]:
        assert tokenizer.encode(sample["text"]) == sample["ids_no_special"], sample["text"]
        assert [tokenizer.bos_id, *tokenizer.encode(sample["text"])] == sample["ids_with_bos"]


def test_special_ids(golden_json, tokenizer):
    case = golden_json("tokenizer_samples")
    found = (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert found == (case["vocab_size"], case["bos"], case["eos"], case["pad"])


def test_survives_pickling(golden_json, tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    for sample in golden_json("tokenizer_samples")["samples"]:
        assert copy.encode(sample["text"]) == sample["ids_no_special"]


def test_decoding(golden_json, tokenizer):
    case = golden_json("chatbridge_generate")
    assert tokenizer.decode(case["chat_ids"][0], skip_special=False) == case["chat_text"]
    assert tokenizer.decode(case["chat_ids"][0]) == case["chat_text"].replace("<s>", "")


def test_decoding_undoes_encoding(golden_json, tokenizer):
    for sample in golden_json("tokenizer_samples")["samples"]:
        text = sample["text"]
        if "<s>" not in text and "</s>" not in text:
            assert tokenizer.decode(sample["ids_no_special"]) == text
