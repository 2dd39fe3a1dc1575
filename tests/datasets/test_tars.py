"""Tars as tar, macOS, img2dataset and nobody good write them: one reader, by number and in sequence."""

from __future__ import annotations

import bz2
import gc
import gzip
import io
import json
import lzma
import os
import re
import tarfile

import pytest

from chatbridge.datasets import shard_readers
from chatbridge.datasets.shard_readers import LocalShards, ShardLost, samples_in_sequence
from chatbridge.datasets.shards import Shard
from chatbridge.datasets.tars import members, scan, split_name
from chatbridge.processors.base import MediaError
from tests.datasets.tools import picture, sample, shards, stream, take, tar_bytes, write_shards


def read(path) -> list[dict]:
    """The samples of a tar read in sequence, their bytes by ending."""
    return [one for _, one in samples_in_sequence(Shard(str(path)))]


def header(name: str = "a.jpg", size: int = 0, kind: bytes = b"0", **fields: bytes) -> bytes:
    """One header block, whatever stands in it, with the checksum it should have."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT)[:512])
    for place, value in ((124, fields.get("raw_size")), (0, fields.get("raw_name"))):
        if value is not None:
            block[place : place + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 512)


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return header("PaxHeader/x", len(records), kind) + padded(records)


END = b"\0" * 1024
JPG = header("a.jpg", 3) + padded(b"abc")

HOSTILE = {
    "pax record of length 0": (pax(b"0 path=a.jpg\n") + JPG + END, "no list of records"),
    "pax record shorter than itself": (pax(b"3 path=a.jpg\n") + JPG + END, "no list of records"),
    "pax record longer than the header": (pax(b"99 path=a.jpg\n") + JPG + END, "no list of records"),
    "pax record without a length": (pax(b"path=a.jpg\n") + JPG + END, "no list of records"),
    "pax record of a negative length": (pax(b"-9 path=a.jpg\n") + JPG + END, "no list of records"),
    "pax record of nothing": (pax(b"4 =\n\n") + JPG + END, "no list of records"),
    "pax size below 0": (pax(b"12 size=-99\n") + JPG + END, "has no size"),
    "pax size that is no number": (pax(b"12 size=1_0\n") + JPG + END, "has no size"),
    "gnu size below 0": (header("a.jpg", raw_size=b"\xff" * 12) + END, "has no size"),
    "octal size below 0": (header("a.jpg", raw_size=b"-0000000001\0") + END, "has no size"),
    "size beyond everything": (header("a.jpg", raw_size=b"\x80" + b"\xff" * 11) + END, "cut off"),
    "long name of a gigabyte": (header("@LongLink", 1 << 30, b"L") + padded(b"x" * 4000), "cut off|extended header"),
    "pax header of a gigabyte": (header("x", 1 << 30, b"x") + padded(b"x" * 4000), "cut off|extended header"),
    "sparse file of GNU tar": (header("a.jpg", 3, b"S") + padded(b"abc") + END, "sparse file"),
    "sparse file by pax": (pax(b"22 GNU.sparse.major=1\n") + JPG + END, "sparse file"),
    "wrong checksum": (JPG[:3] + b"X" + JPG[4:] + END, "no member header"),
    "no end mark": (JPG, "no end mark"),
    "two tars in a row": (JPG + END + JPG + END, "two tars in a row"),
    "text": (b"<html>404</html>" * 100, "no member header"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(HOSTILE))
def test_what_is_no_shard_is_refused_either_way(tmp_path, case):
    data, said = HOSTILE[case]
    (tmp_path / "0.tar").write_bytes(data)
    assert re.search(said, scan(tmp_path / "0.tar").problem)
    with pytest.raises(ShardLost, match=said):
        read(tmp_path / "0.tar")
    with pytest.raises(ValueError, match=f"(?s)0.tar: .*({said})"):
        shards(tmp_path)


def test_what_has_no_bytes_behind_it_is_passed_over(tmp_path):
    """Links, devices and folders, whatever size they give; global headers; names of links."""
    others = [header("x", 4096, kind) for kind in (b"1", b"2", b"3", b"4", b"5", b"6")]
    others += [pax(b"17 comment=words\n", b"g"), header("y", 600, b"K") + padded(b"y" * 600)]
    (tmp_path / "0.tar").write_bytes(b"".join(others) + JPG + b"".join(others) + END)
    assert [member.name for member in members((tmp_path / "0.tar").read_bytes())] == ["a.jpg"]
    assert read(tmp_path / "0.tar") == [{"__key__": "a", "jpg": b"abc"}]
    assert len(scan(tmp_path / "0.tar")) == 1 and scan(tmp_path / "0.tar").problem is None


def test_names_that_are_not_utf8_stay_apart(tmp_path):
    blocks = [header("?.jpg", 3, raw_name=b"caf" + end + b".jpg") + padded(b"abc") for end in (b"\xe8", b"\xe9")]
    (tmp_path / "0.tar").write_bytes(b"".join(blocks) + END)
    assert [one["__key__"] for one in read(tmp_path / "0.tar")] == ["cafè", "café"]
    assert len(scan(tmp_path / "0.tar")) == 2


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_is_read_as_python_reads_it(tmp_path, format):
    names = ["a/b.jpg", "ü" * 30 + ".txt", "d" * 90 + "/" + "e" * 60 + ".json", "g/h.x.png"]
    names += ["n" * 200 + ".jpg"] if format != tarfile.USTAR_FORMAT else []
    with tarfile.open(tmp_path / "0.tar", "w", format=format) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = number * 300
            tar.addfile(info, io.BytesIO(b"%d" % number * info.size))
    data = (tmp_path / "0.tar").read_bytes()
    with tarfile.open(tmp_path / "0.tar") as tar:
        expected = [(info.name, info.offset, info.offset_data, info.size) for info in tar]
    assert [tuple(member) for member in members(data, len(data))] == expected


def test_what_stands_between_a_samples_members_does_not_tear_it_apart(tmp_path):
    between = ["._a.jpg", ".DS_Store", "PaxHeader/a.jpg", "PaxHeaders.17/a.jpg", "__MACOSX/._a.txt", "Thumbs.db"]
    between += ["x/.hidden.txt", "__info__.json", "a.__key__", "noending"]
    packed = {"a.jpg": b"1", **dict.fromkeys(between, b"junk"), "a.txt": b"2"}
    (tmp_path / "0.tar").write_bytes(tar_bytes([packed]))
    assert read(tmp_path / "0.tar") == [{"__key__": "a", "jpg": b"1", "txt": b"2"}]
    found = LocalShards([Shard(str(tmp_path / "0.tar"))]).members(0, 0)
    assert found["__key__"] == "a" and list(found) == ["__key__", "jpg", "txt"] and len(scan(tmp_path / "0.tar")) == 1
    assert not any(map(split_name, between))
    assert split_name("__a/b.JPG") == ("__a/b", "jpg") and split_name("Pax/T.d.png") == ("Pax/T", "d.png")


def test_members_of_unlikely_size_cost_their_sample(tmp_path, monkeypatch):
    big = {"big.jpg": b"x" * 5000, "big.txt": b"a picture"}
    long = {"long.jpg": picture(1), "long.json": json.dumps({"caption": "a" * 5000}).encode()}
    (tmp_path / "0.tar").write_bytes(tar_bytes([sample(f"s{i}", i) for i in range(6)] + [big, long]))
    monkeypatch.setattr(shard_readers, "LARGEST_MEMBER", 4000)
    monkeypatch.setattr(shard_readers, "LARGEST_TEXT", 3000)
    assert "too many" in read(tmp_path / "0.tar")[6]["__problem__"]
    for access in ("number", "sequence"):
        batches = take(stream([shards(tmp_path, access=access, shuffle=0)], 4), 4)
        entries = [entry for batch in batches for entry in batch.ledger]
        reported = {(e.file.rpartition("/")[2], "too many" in e.reason or "is the limit" in e.reason) for e in entries}
        assert len(reported) == 2 and all(reason for _, reason in reported)
        assert not {"big", "long"} & {i for b in batches for i in b.ids}
    with pytest.raises(MediaError, match="5,015 bytes, too many for a text"):
        shards(tmp_path).record(7)


@pytest.mark.parametrize("packer", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_tars_are_read_and_their_bombs_are_not(tmp_path, monkeypatch, packer):
    good = tar_bytes([sample(f"s{i}", i) for i in range(4)])
    (tmp_path / "0.tar.z").write_bytes(packer(good))
    assert [one["__key__"] for one in read(tmp_path / "0.tar.z")] == [f"s{i}" for i in range(4)]
    monkeypatch.setattr(shard_readers, "UNCHECKED_BYTES", 100_000)
    (tmp_path / "0.tar.z").write_bytes(packer(header("a.jpg", 10**7) + b"\0" * 10**7 + END))
    with pytest.raises(ShardLost, match="unpacks to more than 200 times its size"):
        read(tmp_path / "0.tar.z")
    (tmp_path / "0.tar.z").write_bytes(packer(good)[:-100])
    with pytest.raises(ShardLost):
        read(tmp_path / "0.tar.z")
    (tmp_path / "0.tar").write_bytes(packer(good))
    with pytest.raises(ValueError, match="is compressed .*x.tar.gz"):
        shards(tmp_path)


def test_pipes_and_folders_in_the_place_of_shards(tmp_path):
    (tmp_path / "good.tar").write_bytes(tar_bytes([sample(f"s{i}", i) for i in range(4)]))
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.tar").mkdir()
    for access in ("number", "sequence"):
        with pytest.raises(ValueError, match="(?s)folder.tar: is a folder.*pipe.tar: is a pipe"):
            shards(tmp_path, access=access)
        assert shards(tmp_path, access=access, invalid="skip").skipped
    with pytest.raises(ShardLost, match="is a pipe"):
        read(tmp_path / "pipe.tar")


# Indexes


def index(folder, *names: str, **more) -> None:
    lines = [{"file": name, "samples": 2, **more} for name in names]
    (folder / "index.json").write_text(json.dumps({"shards": lines}))


@pytest.fixture
def folder(tmp_path):
    """A folder with a good shard, and beside it another."""
    for place in ("in", "out"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "0.tar").write_bytes(tar_bytes([sample(f"s{i}", i) for i in range(2)]))
    return tmp_path / "in"


@pytest.mark.parametrize(
    "name",
    [
        "pipe:touch {out}/owned; cat {out}/0.tar", "PIPE:touch {out}/owned", "http://127.0.0.1:1/0.tar", "{out}/0.tar",
        "file:{out}/0.tar", "file:0.tar", "../out/0.tar", "a/../../out/0.tar", "C:\\0.tar", "..\\out\\0.tar", "", ".",
        "0.tar\0", "half\ud83d.tar", "link.tar", "linked/0.tar",
    ],
)  # fmt: skip
def test_an_index_names_files_below_its_own_folder(folder, monkeypatch, name):
    out = folder.parent / "out"
    (folder / "link.tar").symlink_to(out / "0.tar")
    (folder / "linked").symlink_to(out)
    index(folder, "0.tar", name.format(out=out))
    for place, start in ((str(folder), folder.parent), (".", folder)):
        monkeypatch.chdir(start)
        with pytest.raises(ValueError, match="index.json: names|: is a folder"):
            shards(folder, **({} if place != "." else {"shards": "index.json"}))
    assert sorted(p.name for p in out.iterdir()) == ["0.tar"]


def test_links_that_stay_and_the_one_that_this_project_makes(folder):
    (folder / "other.tar").symlink_to("0.tar")
    (folder / "shards").symlink_to(folder.parent / "out")
    index(folder, "other.tar", "shards/0.tar")
    assert len(shards(folder)) == 4
    (folder.parent / "out" / "gone.tar").symlink_to(folder / "0.tar")
    index(folder, "shards/gone.tar")
    with pytest.raises(ValueError, match="is a link that leads out of it"):
        shards(folder)


def test_a_file_that_is_called_like_a_command_is_a_file(folder, monkeypatch):
    (folder / "0.tar").rename(folder / "pipe:touch owned; cat 0.tar")
    monkeypatch.chdir(folder)
    assert len(shards(folder, shards="pipe?*.tar")) == 2
    assert [p.name for p in folder.iterdir()] == ["pipe:touch owned; cat 0.tar"]


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"shards": []}', '{"shards": {}}', '{"shards": [3]}', '{"shards": [{"file": 3}]}',
        '{"shards": [{"file": "0.tar", "samples": -1}]}', '{"shards": [{"file": "0.tar", "samples": NaN}]}',
        '{"shards": [{"file": "0.tar", "samples": 1e400}]}', '{"shards": [{"file": "0.tar", "samples": "2"}]}',
        '{"shards": [{"file": "0.tar", "samples": 1' + "0" * 400 + "}]}", "[" * 100_000, "1" * 5000,
        '{"shards": [{"file": "0.tar", "samples": 99999999999, "bytes": null}]}',
    ],
)  # fmt: skip
def test_damaged_indexes_are_refused_by_name(folder, text):
    (folder / "index.json").write_text(text)
    with pytest.raises(ValueError, match=r"(index\.json: |0\.tar: has .* its index says)"):
        shards(folder)


@pytest.mark.parametrize("keys", [{"shards": []}, {"shards": {}}, {"shards": ""}])
def test_no_shards_at_all(tmp_path, keys):
    with pytest.raises(ValueError, match="shards is empty; name at least one"):
        shards(tmp_path, **keys)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts what is open, in /proc")
@pytest.mark.parametrize("workers", [0, 2])
def test_what_reading_opened_is_closed_with_the_last_mention_of_it(tmp_path, workers):
    def opened(times: int) -> int:
        for _ in range(times):
            take(stream([shards(tmp_path)], 6, workers=workers), 6)
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    write_shards(tmp_path, [4, 4, 4], index=True)
    before = opened(1)
    assert opened(3) <= before
