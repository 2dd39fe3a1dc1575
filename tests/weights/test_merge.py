"""Vicuna from LLaMA and a delta: the sum, what is checked first, and that memory holds one shard."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from chatbridge.models import CausalLM, CausalLMConfig
from chatbridge.weights import WeightsError, open_weights
from chatbridge.weights import merge as merge_module
from chatbridge.weights.__main__ import main
from chatbridge.weights.merge import merge_delta
from tests import tiny
from tests.weights.test_files import shard


def write(folder, vocabulary, seed, **changes):
    torch.manual_seed(seed)
    settings = {"vocab_size": vocabulary, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**settings | {"intermediate_size": 24} | changes)).half()
    model.save_pretrained(folder)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def folders(tmp_path):
    """LLaMA in .bin shards with the frequencies that old releases saved; a v0 delta with one more token."""
    base, delta = write(tmp_path / "base", 600, 1), write(tmp_path / "delta", 601, 2)
    extra = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    shard(tmp_path / "base", base | extra)
    shutil.copytree(tiny.TOKENIZER, tmp_path / "delta", dirs_exist_ok=True)
    (tmp_path / "delta" / "added_tokens.json").write_text('{"[PAD]": 600}')
    return tmp_path, base, delta


def run(folder, *more):
    return main(["merge-delta", "--base", str(folder / "base"), "--delta", str(folder / "delta"), "--out",
                 str(folder / "out"), *more])  # fmt: skip


def refused(folder, capsys):
    before = sorted(p.name for p in folder.iterdir())
    assert run(folder) == 1
    assert sorted(p.name for p in folder.iterdir()) == before, "nothing was written"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


def test_the_sum(folders):
    folder, base, delta = folders
    assert run(folder, "--shard-size", "0.00001") == 0
    merged = CausalLM(CausalLMConfig(path=str(folder / "out"), dtype="float16")).model.state_dict()
    for name, tensor in merged.items():
        expected = delta[name].clone()
        expected[: len(base[name])] += base[name]
        assert torch.equal(tensor, expected), name
    table = "model.embed_tokens.weight"
    assert torch.equal(merged[table][600], delta[table][600]), "the base's table counts as zero there"
    source = open_weights(folder / "out")
    assert source.container == "safetensors, 3 shards" and not any("inv_freq" in name for name in source.tensors)
    assert json.loads((folder / "out" / "config.json").read_text())["vocab_size"] == 601
    assert (folder / "out" / "tokenizer.model").exists() and (folder / "out" / "added_tokens.json").exists()
    assert main(["inspect", str(folder / "out")]) == 0


def test_one_shard_in_memory(folders, monkeypatch):
    folder, *_ = folders
    sizes = []
    save = merge_module.save_file
    monkeypatch.setattr(merge_module, "save_file", lambda t, *a, **k: (sizes.append(sum(x.nbytes for x in t.values())),
                                                                       save(t, *a, **k)))  # fmt: skip
    merge_delta(folder / "base", folder / "delta", folder / "out", shard_bytes=25_000)
    assert len(sizes) > 1 and max(sizes) <= 25_000


def test_precision(folders):
    folder, *_ = folders
    assert run(folder, "--dtype", "float32") == 0
    assert {t.dtype for t in open_weights(folder / "out").tensors.values()} == {torch.float32}


class TestRefused:
    def test_out_exists(self, folders, capsys):
        folder, *_ = folders
        (folder / "out").mkdir()
        assert "out' exists; name a new folder" in refused(folder, capsys)

    def test_base_and_delta_exchanged(self, folders, capsys):
        folder, *_ = folders
        (folder / "base").rename(folder / "x")
        (folder / "delta").rename(folder / "base")
        (folder / "x").rename(folder / "delta")
        assert "has 601 tokens" in refused(folder, capsys)

    def test_another_size(self, folders, capsys):
        folder, *_ = folders
        write(folder / "base", 600, 1, num_hidden_layers=3)
        assert "of different sizes: num_hidden_layers 3 and 2" in refused(folder, capsys)

    def test_a_tensor_of_another_shape(self, folders, capsys):
        folder, base, _ = folders
        base["model.norm.weight"] = torch.ones(17)
        del base["lm_head.weight"]
        shard(folder / "base", base)
        said = refused(folder, capsys)
        assert "model.norm.weight is [17] in the base and [16] in the delta" in said
        assert "lm_head.weight is in the delta only" in said

    def test_the_wrong_tokenizer(self, folders, capsys):
        folder, *_ = folders
        (folder / "delta" / "added_tokens.json").unlink()
        assert "has 600 tokens and language model" in refused(folder, capsys)

    def test_a_config_that_lies(self, folders, capsys):
        folder, *_ = folders
        file = folder / "delta" / "config.json"
        file.write_text(file.read_text().replace('"vocab_size": 601', '"vocab_size": 602'))
        assert "config.json says 602 tokens, its table has 601" in refused(folder, capsys)

    def test_no_language_model(self, folders, capsys):
        folder, *_ = folders
        torch.save({"query_tokens": torch.ones(1)}, folder / "base" / "pytorch_model-00001-of-00003.bin")
        assert "does not describe its shards" in refused(folder, capsys)
        shutil.rmtree(folder / "base")
        assert "base' do not exist" in refused(folder, capsys)

    def test_nan_in_the_base(self, folders, capsys):
        folder, base, _ = folders
        base["lm_head.weight"][5, 5] = float("nan")
        shard(folder / "base", base)
        assert "tensor 'lm_head.weight' holds 1 values that are NaN" in refused(folder, capsys)

    def test_nothing_is_overwritten(self, folders):
        folder, *_ = folders
        with pytest.raises(WeightsError):
            merge_delta(folder / "base", folder / "delta", folder / "delta")
