"""Weight files that claim what they do not hold, or are none: one line that names the file, and no memory taken."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from chatbridge.common import safe_loading
from chatbridge.common.checkpoint import CheckpointError, load_trainer
from chatbridge.weights import WeightsError, open_weights
from chatbridge.weights.__main__ import main

STATE = {"blocks.0.attn.qkv.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1000)}


def zipped(file, method=zipfile.ZIP_STORED, **members):
    """A file of PyTorch's with other members, or other content of them."""
    torch.save(STATE, file)
    with zipfile.ZipFile(file) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    prefix = next(iter(parts)).split("/")[0]
    parts |= {f"{prefix}/{name}": content for name, content in members.items()}
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def headed(file, header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))


def legacy(file, *pickles):
    """A file of PyTorch's before 1.6: magic number, protocol, system, then what is given."""
    start = b"".join(pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))
    file.write_bytes(start + b"".join(pickles))


def circular_tar(file):
    """A PAX record of length 0, which Python's own reader goes round for ever."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 512
    file.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + b"0 a=b\n".ljust(512, b"\0") + bytes(1024))


def overlapping(file):
    """Many members that are the same bytes."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"x" * 5000)
        archive.filelist += [archive.filelist[0]] * 100


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
ASKS_FOR_ALL = b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."
LONG_STORAGE = (
    b"\x80\x02((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x0fNtQ."
)
LFS = "version https://git-lfs.github.com/spec/v1\n"
NO_PICKLE, UNREAD = "neither a zip archive nor a pickle", "cannot read weights"
FILES = {
    "deflated.pth": (lambda f: zipped(f, zipfile.ZIP_DEFLATED, bomb=bytes(10**7)), "is compressed, which PyTorch"),
    "overlapping.pth": (overlapping, "its members are larger together than the file"),
    "long_pickle.pth": (lambda f: zipped(f, **{"data.pkl": bytes(2 * 10**5)}), "has more than 100,000 bytes"),
    "long_member.pth": (lambda f: zipped(f, byteorder=bytes(2 * 10**5)), "byteorder' has more than 100,000 bytes"),
    "no_pickle.pth": (lambda f: zipped(f, **{"data.pkl": b""}), UNREAD),
    "odd_pickle.pth": (lambda f: zipped(f, **{"data.pkl": b"\x80\x02]q\x00."}), "hold a list, not a dictionary"),
    "bytes.pth": (lambda f: zipped(f, **{"data.pkl": ASKS_FOR_ALL}), "asks for bytes without content"),
    "bytes.pt": (lambda f: legacy(f, ASKS_FOR_ALL), "asks for bytes without content"),
    "long_string.pt": (lambda f: legacy(f, b"\x80\x02X\xff\xff\xff\x7fabc"), UNREAD),
    "long_stream.pt": (lambda f: legacy(f, b"\x80\x02(" + b"]" * 2 * 10**5), "has more than 100,000 bytes"),
    "huge_storage.pt": (lambda f: legacy(f, LONG_STORAGE), UNREAD),
    "tar.pt": (circular_tar, NO_PICKLE),
    "text.pth": (lambda f: f.write_text("<html>404 not found</html>"), NO_PICKLE),
    "nothing.pth": (lambda f: f.write_bytes(b""), NO_PICKLE),
    "lfs.pth": (lambda f: f.write_text(LFS), "git lfs pull"),
    "lfs.safetensors": (lambda f: f.write_text(LFS), "git lfs pull"),
    "folder.safetensors": (lambda f: f.mkdir(), "holds no weights"),
    "pipe.pth": (os.mkfifo, "is a pipe"),
    "pipe.safetensors": (os.mkfifo, "is a pipe"),
    "device.pth": (lambda f: f.symlink_to("/dev/zero"), "a device"),
    "loop.pth": (lambda f: f.symlink_to(f), UNREAD),
    "short.safetensors": (lambda f: f.write_bytes(b"1234"), "less than 8 bytes"),
    "long_header.safetensors": (lambda f: f.write_bytes(struct.pack("<Q", 2**33) + bytes(99)), "announces a header of"),
    "longer.safetensors": (lambda f: f.write_bytes(struct.pack("<Q", 1000) + bytes(99)), "announces a header of 1,000"),
    "deep.safetensors": (lambda f: headed(f, b"[" * 10**5), UNREAD),
    "list.safetensors": (lambda f: headed(f, [1]), UNREAD),
    "elements.safetensors": (lambda f: headed(f, {"a": ENTRY | {"shape": [2**40, 2**40]}}), UNREAD),
    "offsets.safetensors": (lambda f: headed(f, {"a": ENTRY | {"data_offsets": [0, 2**60]}}), UNREAD),
    "negative.safetensors": (lambda f: headed(f, {"a": ENTRY | {"shape": [-2, -2]}}), UNREAD),
    "type.safetensors": (
        lambda f: headed(f, {"a": {"dtype": "U64", "shape": [8], "data_offsets": [0, 64]}}), "is of type U64"),
    "sparse.pth": (lambda f: torch.save({"a": torch.eye(2).to_sparse()}, f), "is sparse or quantised"),
    "empty.pth": (lambda f: torch.save({"a": torch.empty(2, device="meta")}, f), "have no content"),
    "tensor.pth": (lambda f: torch.save(torch.ones(2), f), "hold a Tensor, not a dictionary"),
}  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    """Limits that tests reach without large files; and no more memory than a gigabyte beyond what there is."""
    monkeypatch.setattr(safe_loading, "MAX_PICKLE", 100_000)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", FILES)
def test_each_is_one_line_that_names_it(tmp_path, capsys, small, name):
    make, said = FILES[name]
    make(tmp_path / name)
    with pytest.raises(WeightsError) as error:
        source = open_weights(tmp_path / name)
        list(source.stream(source.tensors))
    text = str(error.value)
    assert said in text and name in text and "\n" not in text
    assert main(["inspect", str(tmp_path / name)]) == 1
    output = capsys.readouterr()
    assert name in output.out and "Traceback" not in output.err


@pytest.mark.parametrize("name", ["deflated.pth", "overlapping.pth", "bytes.pth", "bytes.pt"])
def test_a_trainers_state_takes_no_memory_either(tmp_path, small, name):
    FILES[name][0](tmp_path / "trainer.pt")
    with pytest.raises(CheckpointError, match=r"trainer\.pt: damaged"):
        load_trainer(tmp_path)


def test_a_trainers_state_may_be_long(tmp_path, small):
    state = {"drawn": [str(i) for i in range(50_000)]}
    torch.save(state, tmp_path / "trainer.pt")
    assert load_trainer(tmp_path) == state


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_whatever_byte_is_damaged_it_is_read_or_refused(tmp_path, kind):
    file = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(STATE, file)
    else:
        torch.save({"model": STATE, "epoch": 3}, file, _use_new_zipfile_serialization=kind == "zip")
    whole, rng, refused = file.read_bytes(), random.Random(kind), 0
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3))):
            content[rng.randrange(rng.choice((64, 700, len(content))))] = rng.randrange(256)
        file.write_bytes(content)
        try:
            source = open_weights(file)
            list(source.stream(source.tensors))
        except WeightsError as error:
            refused += 1
            assert file.name in str(error) and "\n" not in str(error)
    assert refused > 5


def test_names_of_any_kind_stay_in_one_line(tmp_path, capsys):
    names = {"two\nlines": torch.ones(1), "half \ud83d": torch.ones(1), 7: torch.ones(1), "long" * 999: torch.ones(1)}
    torch.save(names, tmp_path / "w.pth")
    assert main(["inspect", str(tmp_path / "w.pth")]) == 1
    said = capsys.readouterr().out
    assert "it holds two lines, half \ufffd, 7, ... and 1 more" in said


def test_a_file_of_before_16_is_read_as_ever(tmp_path):
    torch.save({"model": STATE}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    source = open_weights(tmp_path / "w.pth")
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in source.stream(STATE))


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("[]", "is not a JSON object with a weight_map"),
        ("{", "is not valid JSON"),
        ('{"weight_map": {"a": ["x"]}}', "names files outside its folder"),
        ('{"weight_map": {"a": "../w.safetensors"}}', "names files outside its folder: ../w.safetensors"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "names files outside its folder: /etc/passwd"),
        ('{"weight_map": {"a": ".."}}', "lacks 1 of the 1 shards"),
        ('{"weight_map": {"a": 1}}', "names files outside its folder: 1"),
    ],
)
def test_an_index_names_files_beside_it(tmp_path, index, said):
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "model.safetensors.index.json").write_text(index)
    with pytest.raises(WeightsError) as error:
        open_weights(tmp_path / "llm")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_reader_that_is_asked_for_everything(monkeypatch):
    monkeypatch.setattr(safe_loading, "MAX_PICKLE", 100)
    stream = safe_loading._LegacyFile(io.BytesIO(bytes(99)))
    assert len(stream.read(2**60)) == 99 and stream.read() == b""
    with pytest.raises(ValueError, match="more than 100 bytes"):
        safe_loading._LegacyFile(io.BytesIO(bytes(999))).read()
