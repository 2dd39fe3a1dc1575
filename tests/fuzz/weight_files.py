"""Whole weight files, model folders and a checkpoint, small; and faults that know their formats."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import train
from chatbridge import register_all
from chatbridge.common.config import load_config
from chatbridge.common.registry import MODELS
from chatbridge.models import EvaVit, EvaVitConfig
from tests import tiny
from tests.fuzz.damage import NUMBERS, ODD, PIPE, as_json, damaged_tree
from tests.fuzz.target import SENTINEL

EVA = EvaVitConfig(**{name: value for name, value in tiny.EVA.items() if name != "name"})

CODE = f"""open("{SENTINEL}", "w")
class Config: pass
class Model: pass
class Tokenizer: pass
"""
"""What stands in a model folder's Python files."""

AUTO_MAP = {
    "AutoConfig": "theirs.Config", "AutoModel": "theirs.Model", "AutoModelForCausalLM": "theirs.Model",
    "AutoTokenizer": ["theirs.Tokenizer", "theirs.Tokenizer"],
}  # fmt: skip

IN_JSON: tuple[Any, ...] = (
    *ODD, "theirs.Tokenizer", "theirs.Model", AUTO_MAP, "../../escape", "/etc/passwd", "LlamaTokenizer", "llama",
    "gpt2",
    "mistral", "gemma2", "xlstm", "bert", "t5", "torch.float8_e4m3fn", "{{ 7 * 7 }}", "{% for x in y %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "model.safetensors", "config.json", 10**7, 10**9,
)  # fmt: skip


def write_all(folder: Path) -> None:
    """Everything, each kind in a folder of its own."""
    register_all()
    tree = tiny.make_config(folder, max_steps=2, stop_at=1, checkpoint_every=1, report_every=0, threads=1)
    config = load_config(tiny.write_yaml(folder, tree)).config
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    _encoders(folder / "encoder", EvaVit(EVA).state_dict())
    _sharded(folder / "llm", folder / "sharded")
    _words(folder / "fast")
    model.save_pretrained(folder / "saved", processors=config.processors, max_shard_size="150KB")
    (folder / "whole").mkdir()
    save_file(model.trainable_state(), folder / "whole" / "model.safetensors", {"format": "chatbridge"})
    assert train.main(["--cfg-path", str(folder / "run.yaml")]) == 0


def _encoders(folder: Path, state: Mapping[str, Tensor]) -> None:
    folder.mkdir()
    save_file(dict(state), folder / "eva.safetensors")
    torch.save(state, folder / "eva.pth")
    torch.save({"model": state, "epoch": 3, "cfg": {"lr": 0.1}}, folder / "wrapped.pth")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)


def _sharded(llm: Path, folder: Path) -> None:
    """The language model in .bin shards, as old folders come."""
    from safetensors.torch import load_file

    folder.mkdir()
    for file in llm.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    state, where = load_file(llm / "model.safetensors"), {}
    for number in range(2):
        name = f"pytorch_model-{number + 1:05d}-of-00002.bin"
        part = {n: t for i, (n, t) in enumerate(state.items()) if i % 2 == number}
        torch.save(part, folder / name)
        where |= dict.fromkeys(part, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _words(folder: Path) -> None:
    """A tokenizer of transformers' own format."""
    words = {
        word: number
        for number, word in enumerate(["[UNK]", "<s>", "</s>", "a", "b", "c", "what", "colour", "is", "it", "red"])
    }
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)  # fmt: skip


class Calls:
    """Unpickled, it calls something."""

    def __init__(self, function: Callable, *arguments: Any):
        self.what = function, arguments

    def __reduce__(self) -> tuple:
        return self.what


def _laughs() -> list:
    """Little in a file; a thousand million items for whoever prints it."""
    many: list = ["ha"] * 10
    for _ in range(9):
        many = [many] * 10
    return many


def payload(rng: random.Random) -> Any:
    """Something that weights have no business with."""
    touch = f"touch {SENTINEL}"
    return rng.choice((
        lambda: Calls(os.system, touch), lambda: Calls(eval, f"__import__('os').system('{touch}')"),
        lambda: Calls(exec, CODE), lambda: Calls(subprocess.check_output, ["touch", SENTINEL]),
        lambda: Calls(open, SENTINEL, "w"), lambda: Calls(bytearray, 3 << 30), lambda: Calls(__import__, "os"),
        lambda: Calls(torch.zeros, 1 << 30), lambda: Calls(torch.load, "legacy.pth"), _laughs, lambda: 10**5000,
        lambda: "half \ud83d", lambda: {1: {2: 3}}, lambda: Calls(str, "a"), lambda: torch.zeros(2).to_sparse(),
        lambda: torch.empty(1 << 36, device="meta"), lambda: torch.zeros(3).as_strided((1 << 20, 1 << 20), (0, 0)),
        lambda: torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8), lambda: torch.zeros(2).cfloat(),
    ))()  # fmt: skip


def pickled(data: bytes, rng: random.Random) -> bytes:
    """A PyTorch file of either container with something else among its tensors."""
    zipped = zipfile.is_zipfile(io.BytesIO(data))
    inside = torch.load(io.BytesIO(data), weights_only=True)
    name = rng.choice((*inside, "model", "state_dict", "epoch", "new", 7, None, ("a",)))
    changed = {**inside, name: payload(rng)} if rng.random() < 0.9 else payload(rng)
    out = io.BytesIO()
    torch.save(changed, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


def zipped(data: bytes, rng: random.Random, damage: Callable[[bytes, random.Random], bytes]) -> bytes:
    """A zip with other members, each with its right checksum."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return damage(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(members))
    name, body = members[at]
    what = rng.randrange(6)
    if what == 0:
        del members[at]
    elif what == 1:
        members[at] = name, damage(body, rng)
    elif what == 2:
        members[at] = rng.choice((name + "x", "../" + name, "/" + name, name.upper(), "archive/data.pkl")), body
    elif what == 3:
        members.append((name, damage(body, rng)))
    elif what == 4:
        members[at] = name, b"\x80\x02" + rng.choice((b"(" * 10**6, b"]" * 10**6 + b".", pickle.dumps(10**5000)[2:]))
    elif rng.random() < 0.1:
        return _bomb(name)
    out = io.BytesIO()
    how = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(out, "w", how) as archive:
        for name, body in members:
            archive.writestr(name, body)
    return out.getvalue()


@cache
def _bomb(name: str) -> bytes:
    """A gigabyte and more of zeros, as one member of a zip."""
    out, info = io.BytesIO(), zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED  # a ZipInfo has a way of its own, whatever the archive's is
    with zipfile.ZipFile(out, "w", compresslevel=1) as archive, archive.open(info, "w", force_zip64=True) as member:
        for _ in range(1500):
            member.write(bytes(1 << 20))
    return out.getvalue()


def safetensors(data: bytes, rng: random.Random) -> bytes:
    """Another header, as long as it says."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    named = [name for name in header if name != "__metadata__"]
    what = rng.randrange(5)
    if what == 0:
        header = damaged_tree(header, rng)
    elif what == 1:
        header[rng.choice(named)]["shape"] = rng.choice(([], [0], [-1], [rng.choice(NUMBERS)] * 2, [2**62, 4], None))
    elif what == 2:
        header[rng.choice(named)]["dtype"] = rng.choice(("F8_E8M0", "F4", "C64", "U64", "Q4", "", None, "f32", "I64"))
    elif what == 3:
        header[rng.choice(named)]["data_offsets"] = rng.sample(NUMBERS, 2)
    else:
        header["__metadata__"] = rng.choice((None, [], {"a": 1}, {"format": PIPE}, {"step": "x"}, {"\ud83d": "a"}))
    text = as_json(header, rng)
    length = len(text) if rng.random() < 0.9 else rng.choice(NUMBERS)
    return (length & (2**64 - 1)).to_bytes(8, "little") + text + body
