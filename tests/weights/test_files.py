"""Files that are damaged, unsafe, or not where they should be: one clear line each, and nothing is loaded."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from chatbridge.models import CausalLM, CausalLMConfig, EvaVit, EvaVitConfig
from chatbridge.weights import WeightsError, open_weights
from chatbridge.weights import files as files_module
from tests import tiny


@contextmanager
def as_nobody():
    """Root may read everything: for the duration, be somebody who may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path):
        self.command = f"touch {file}"

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def state():
    return {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(40_000, dtype=torch.float16)}


@pytest.fixture
def folder(tmp_path):
    """A toy LLaMA in .bin shards with an index, as old Vicuna folders come."""
    from transformers import LlamaForCausalLM

    tiny.write_llm(tmp_path / "llm")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "llm")
    return shard(tmp_path / "llm", model.state_dict())


def shard(folder, state, count=3):
    (folder / "model.safetensors").unlink(missing_ok=True)
    names = list(state)
    weight_map = {}
    for i in range(count):
        file = f"pytorch_model-{i + 1:05d}-of-{count:05d}.bin"
        part = names[i * len(names) // count : (i + 1) * len(names) // count]
        torch.save({name: state[name].clone() for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def load(folder):
    return CausalLM(CausalLMConfig(path=str(folder)))


class TestReading:
    @pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "wrapped"])
    def test_every_container(self, tmp_path, state, kind):
        file = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
        if kind == "safetensors":
            save_file(state, file)
        else:
            content = {"model": state, "epoch": 3} if kind == "wrapped" else state
            torch.save(content, file, _use_new_zipfile_serialization=kind != "legacy")
        source = open_weights(file)
        assert {n: (t.shape, t.dtype) for n, t in source.tensors.items()} == {
            n: (t.shape, t.dtype) for n, t in state.items()
        }
        assert all(t.is_meta for t in source.tensors.values()) and source.bytes == 24 + 80_000
        assert source.extras == ({"epoch": 3} if kind == "wrapped" else {})
        assert all(torch.equal(t, state[n]) for n, t in source.stream(["b", "a"]))

    def test_windows_are_let_go(self, tmp_path, state, monkeypatch):
        """A file is mapped piece by piece: the next piece only after the one before."""
        monkeypatch.setattr(files_module, "WINDOW", 50_000)
        many = {f"t{i}": torch.full((20_000,), i, dtype=torch.float16) for i in range(5)}
        for name, save in (("w.safetensors", save_file), ("w.pth", torch.save)):
            save(many, tmp_path / name)
            source = open_weights(tmp_path / name)
            assert [len(w) for w in source._split(list(many))] == [1] * 5
            assert [int(t[0]) for _, t in source.stream(many)] == [0, 1, 2, 3, 4]

    def test_a_shard_folder(self, folder):
        source = open_weights(folder)
        assert source.container == "torch, 3 shards" and "lm_head.weight" in source.tensors
        assert load(folder).model.lm_head.weight.shape == (600, 48)


class TestUnsafe:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_pickle_that_would_run_code(self, tmp_path, state, zipped):
        made = tmp_path / "made_by_the_pickle"
        file = tmp_path / "eva_vit_g.pth"
        torch.save({"model": state, "epoch": Evil(made)}, file, _use_new_zipfile_serialization=zipped)
        torch.load(file, weights_only=False)
        assert made.exists(), "the file is as dangerous as it should be"
        made.unlink()
        for read in (open_weights, lambda f: EvaVit(EvaVitConfig(weights=str(f)))):
            with pytest.raises(ValueError, match=r"eva_vit_g.pth' are refused: unpickling them would call \w+\.system"):
                read(file)
        assert not made.exists()

    def test_a_bare_pickle(self, tmp_path):
        made = tmp_path / "made"
        (tmp_path / "w.bin").write_bytes(pickle.dumps({"a": Evil(made)}))
        with pytest.raises(WeightsError, match="w.bin"):
            open_weights(tmp_path / "w.bin")
        assert not made.exists()

    def test_a_shard_that_would_run_code(self, folder, tmp_path):
        torch.save({"lm_head.weight": Evil(tmp_path / "made")}, folder / "pytorch_model-00003-of-00003.bin")
        with pytest.raises(WeightsError, match="pytorch_model-00003-of-00003.bin' are refused"):
            load(folder)
        assert not (tmp_path / "made").exists()


class TestDamaged:
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
    @pytest.mark.parametrize("name", ["w.pth", "old.pth", "w.safetensors"])
    def test_half_a_download(self, tmp_path, state, name, share):
        file = tmp_path / name
        if name == "w.safetensors":
            save_file(state, file)
        else:
            torch.save(state, file, _use_new_zipfile_serialization=name == "w.pth")
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
        with pytest.raises(WeightsError, match=f"cannot read weights '.*{name}': .*is the download complete"):
            list(open_weights(file).stream(["a", "b"]))

    def test_an_altered_byte(self, tmp_path, state):
        file = tmp_path / "w.pth"
        torch.save(state, file)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        assert torch.load(file, weights_only=True)["b"].shape == (40_000,), "PyTorch itself does not notice"
        with pytest.raises(WeightsError, match="w.pth' are damaged: the checksum of '.*' is wrong"):
            open_weights(file)

    def test_a_safetensors_header_that_lies(self, tmp_path, state):
        file = tmp_path / "w.safetensors"
        save_file(state, file)
        file.write_bytes(file.read_bytes().replace(b"[40000]", b"[49999]"))
        with pytest.raises(WeightsError, match="cannot read weights '.*w.safetensors'"):
            open_weights(file)

    @pytest.mark.parametrize("content", [b"<html>quota exceeded</html>", b"", b"\x00" * 99])
    def test_a_page_instead_of_a_file(self, tmp_path, content):
        for name in ("w.pth", "w.safetensors"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(WeightsError, match=name):
                open_weights(tmp_path / name)

    def test_a_list(self, tmp_path):
        torch.save([torch.zeros(1)], tmp_path / "w.pth")
        with pytest.raises(WeightsError, match="hold a list, not a dictionary"):
            open_weights(tmp_path / "w.pth")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_value_that_is_no_number(self, tmp_path, value):
        eva = EvaVitConfig(image_size=28, width=12, depth=1, heads=2)
        state = EvaVit(eva).state_dict()
        state["blocks.0.attn.qkv.weight"][3, 4] = value
        torch.save(state, tmp_path / "eva.pth")
        eva.weights = str(tmp_path / "eva.pth")
        with pytest.raises(
            WeightsError, match="eva.pth': tensor 'blocks.0.attn.qkv.weight' holds 1 values that are NaN"
        ):
            EvaVit(eva)


class TestFolders:
    def test_a_missing_shard(self, folder):
        (folder / "pytorch_model-00002-of-00003.bin").unlink()
        with pytest.raises(
            WeightsError, match="lacks 1 of the 3 shards of its index: pytorch_model-00002-of-00003.bin"
        ):
            load(folder)

    def test_a_cut_shard(self, folder):
        file = folder / "pytorch_model-00002-of-00003.bin"
        file.write_bytes(file.read_bytes()[:-200])
        with pytest.raises(WeightsError, match="pytorch_model-00002-of-00003.bin'.*download complete"):
            load(folder)

    def edit(self, folder, change):
        index = folder / "pytorch_model.bin.index.json"
        plain = json.loads(index.read_text())
        change(plain["weight_map"])
        index.write_text(json.dumps(plain))
        with pytest.raises(WeightsError) as error:
            load(folder)
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_an_index_that_lies(self, folder):
        def move(weight_map):
            weight_map["lm_head.weight"] = "pytorch_model-00001-of-00003.bin"

        def forget(weight_map):
            del weight_map["lm_head.weight"]

        def invent(weight_map):
            weight_map["lm_head.bias"] = "pytorch_model-00001-of-00003.bin"

        text = (folder / "pytorch_model.bin.index.json").read_text()
        for change, said in (
            (move, "lm_head.weight is not in pytorch_model-00001-of-00003.bin"),
            (forget, "holds lm_head.weight, which it does not list there"),
            (invent, "lm_head.bias is not in pytorch_model-00001-of-00003.bin"),
        ):
            assert said in self.edit(folder, change)
            (folder / "pytorch_model.bin.index.json").write_text(text)

    def test_an_index_that_leads_elsewhere(self, folder):
        assert "outside its folder: ../evil.bin" in self.edit(folder, lambda m: m.update(x="../evil.bin"))

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}'])
    def test_no_index_at_all(self, folder, text):
        (folder / "pytorch_model.bin.index.json").write_text(text)
        with pytest.raises(WeightsError, match="pytorch_model.bin.index.json"):
            load(folder)

    def test_shards_without_an_index(self, folder):
        (folder / "pytorch_model.bin.index.json").unlink()
        with pytest.raises(WeightsError, match="holds shards .* but no pytorch_model.bin.index.json"):
            load(folder)

    def test_no_weights(self, folder):
        for file in folder.glob("pytorch_model*"):
            file.unlink()
        with pytest.raises(ValueError, match="holds no weights; looked for model.safetensors"):
            load(folder)

    def test_metas_own_layout(self, tmp_path):
        (tmp_path / "consolidated.00.pth").write_bytes(b"")
        with pytest.raises(WeightsError, match="Meta's own layout; convert"):
            open_weights(tmp_path)

    def test_tensors_missing_from_a_whole_folder(self, folder):
        state = {n: t for f in folder.glob("*.bin") for n, t in torch.load(f, weights_only=True).items()}
        del state["model.norm.weight"]
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(12)
        shard(folder, state)
        with pytest.raises(
            WeightsError, match=r"language model '.*' does not fit .*: missing \(1\): model.norm.weight"
        ):
            load(folder)

    @pytest.mark.parametrize("what", ["folder", "file", "config"])
    def test_no_permission(self, folder, what, request):
        public = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
        request.addfinalizer(lambda: shutil.rmtree(public))
        public.chmod(0o755)
        folder = shutil.copytree(folder, public / "llm")
        denied = {
            "folder": folder,
            "file": folder / "pytorch_model-00001-of-00003.bin",
            "config": folder / "config.json",
        }
        denied[what].chmod(0o000)
        try:
            with as_nobody(), pytest.raises(ValueError, match="no permission to read") as error:
                load(folder)
        finally:
            denied[what].chmod(0o755)
        assert "\n" not in str(error.value) and denied[what].name in str(error.value)
