"""Tar shards and their indexes, as training reads them and as ``dataset_prep`` does."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from chatbridge.common.documents import DocumentError
from chatbridge.common.schema import ConfigError
from chatbridge.processors import MediaError
from dataset_prep import cc_sbu_laion, validate
from tests import tiny
from tests.datasets import tools as reading_tools
from tests.fuzz.configurations import portable
from tests.fuzz.damage import NUMBERS, ODD, PIPE, as_json, damaged, damaged_tree, misplaced
from tests.fuzz.target import Step, Target, command

QUICK = ("--workers", "0", "--quiet")

NAMES = (
    b"", b".", b"..", b"/", b"a", b".jpg", b"._0.jpg", b"__MACOSX/._0.jpg", b"../0.jpg", b"../../x.json", b"/etc/0.jpg",
    b"__0__.jpg", b"a/b/c/0.jpg", b"0.JPG", b"0.1.2.jpg", b"0.json.jpg", b"\xff\xfe.jpg", b"half \xed\xa0\xbd.jpg",
    b"n" * 100, b"a\nb.jpg", b"0.jpg/", b"PaxHeader/0", b"0..jpg", b" .jpg", b"0.jpg\0.json",
)  # fmt: skip

KINDS = (b"0", b"\0", b"7", b"1", b"2", b"3", b"4", b"5", b"6", b"g", b"x", b"L", b"K", b"S", b"A", b"V", b"\xff", b"N")

RECORDS = (
    b"0 path=x\n", b"00 path=x\n", b"-5 path=x\n", b"5 path=x\n", b"999999 path=x\n", b"a path=x\n", b"11 path=ab",
    b"11",
    b" 11 path=ab\n", b"11 path=\xff\xfe\n", b"12 size=999\n", b"12 size=-99\n", b"11 size=ab\n",
    b"21 size=" + b"9" * 11 + b"\n",
    b"9" * 5000 + b" path=x\n", b"23 GNU.sparse.major=1\n\n", b"25 GNU.sparse.realsize=9\n", b"\0" * 600, b"3 \n" * 400,
    b"19 linkpath=/etc/x\n", b"22 hdrcharset=BINARY\n\n", b"15 mtime=1e999\n",
)  # fmt: skip
"""What stands in an extended header."""

ENTRIES: tuple[Any, ...] = (
    *ODD, "0.jpg", ["0.jpg", "1.jpg"], "../../0.jpg", "/etc/passwd", [], {"a": "0.jpg"}, float("nan"), "half \ud83d",
)  # fmt: skip

INDEX: tuple[Any, ...] = (
    *ODD, PIPE, f"{PIPE} #.tar", f"file:000.tar; touch {PIPE}", "http://127.0.0.1:9/000.tar", "ftp://127.0.0.1:9/0.tar",
    "../000.tar", "/dev/zero", "/dev/stdin", "-", "s3://a/000.tar", "{000..999999999}.tar", "*.tar", "000.tar",
    "deep/000.tar",
    "hf://x/y", "ais://x", "htgs://x", "index.json", "000.tar?x=1", "FILE:000.tar", "PIPE:touch code_was_run",
)  # fmt: skip


class Tars(Target):
    errors = (MediaError, ConfigError, DocumentError)
    plain = True

    def __init__(self, folder: Path):
        super().__init__(folder)
        tree = tiny.make_config(folder)
        shards = {"builder": "webdataset", "kind": "ti-cap", "folder": "shards", "batch_size": 4, "weight": 1.0}
        self.run = portable(tree | {"datasets": {"shards": shards}}, folder)

    def trial(self, rng: random.Random, folder: Path) -> Iterator[Step]:
        (folder / "files").symlink_to(self.folder)
        shards = folder / "shards"
        shards.mkdir()
        bad = self._shard(rng, shards)
        keys: dict[str, Any] = {"invalid": rng.choice(("error", "skip"))}
        if rng.random() < 0.4 or bad.suffix != ".tar":
            self._index(rng, shards, bad)
        if bad.suffix != ".tar":
            keys |= {"access": "sequence", "weight": 1.0}
        yield "read by number", partial(_read, shards, keys)
        yield "read in sequence", partial(_read, shards, keys | {"access": "sequence", "weight": 1.0})
        yield "prepare", command(cc_sbu_laion.main, "shards", "--out", "prepared", *QUICK)
        if rng.random() < 0.3:
            for dataset in self.run["datasets"].values():
                dataset["invalid"] = keys["invalid"]
            file = tiny.write_yaml(folder, self.run)
            yield "validate", command(validate.main, "--cfg-path", str(file), *QUICK)

    def _shard(self, rng: random.Random, shards: Path) -> Path:
        """One good tar and one that is not."""
        whole = [_member(name, data) for key in "0123" for name, data in _sample(key)]
        (shards / "001.tar").write_bytes(b"".join(whole) + bytes(1024))
        chance = rng.random()
        members = _changed(whole, rng) if chance < 0.7 else whole
        data = b"".join(members) + bytes(rng.choice((1024, 1024, 1024, 0, 512, 1, 10240)))
        if chance > 0.6:
            data = damaged(data, rng)
        ending, data = _packed(data, rng)
        file = shards / f"000{ending}"
        file.write_bytes(data)
        if rng.random() < 0.05:
            misplaced(file, rng)
        return file

    def _index(self, rng: random.Random, shards: Path, bad: Path) -> None:
        lines = [{"file": name, "samples": 4, "bytes": 9216} for name in (bad.name, "001.tar")]
        for line in lines:
            file = shards / line["file"]
            line["bytes"] = file.stat().st_size if file.is_file() and not file.is_symlink() else 9216
        tree: Any = {"format": "webdataset", "shards": lines}
        if rng.random() < 0.2:
            lines = [{"url": line["file"], "nsamples": 4, "filesize": line["bytes"]} for line in lines]
            tree = {"shardlist": lines}
        if rng.random() < 0.8:
            tree = damaged_tree(tree, rng, INDEX)
        data = as_json(tree, rng)
        (shards / "index.json").write_bytes(data if rng.random() < 0.8 else damaged(data, rng))
        if rng.random() < 0.04:
            misplaced(shards / "index.json", rng)


def _sample(key: str) -> list[tuple[bytes, bytes]]:
    entry = {"id": key, "image_id": f"{key}.jpg", "caption": reading_tools.caption(int(key))}
    parts = {"jpg": reading_tools.picture(int(key)), "json": json.dumps(entry).encode(), "txt": b"a caption"}
    return [(f"{key}.{ending}".encode(), data) for ending, data in parts.items()]


def _member(name: bytes, body: bytes, kind: bytes = b"0", **fields: bytes) -> bytes:
    """A header and what follows it; `fields` in place of the right ones, with the right checksum unless that is one."""
    made = {
        "name": name[:100].ljust(100, b"\0"), "mode": b"0000644\0", "uid": b"0000000\0", "gid": b"0000000\0",
        "size": b"%011o\0" % len(body), "mtime": b"00000000000\0", "checksum": b" " * 8, "kind": kind,
        "link": bytes(100), "magic": b"ustar\x0000", "user": bytes(32), "group": bytes(32), "device": bytes(16),
        "prefix": bytes(155),
    }  # fmt: skip
    widths = {field: len(value) for field, value in made.items()}
    made |= {field: value[: widths[field]].ljust(widths[field], b"\0") for field, value in fields.items()}
    if "checksum" not in fields:
        made["checksum"] = b"%06o\0 " % sum(b"".join(made.values()))
    return b"".join(made.values()).ljust(512, b"\0") + body + bytes(-len(body) % 512)


def _changed(members: list[bytes], rng: random.Random) -> list[bytes]:
    """Members with other headers, others between them, or in another order."""
    members, at = list(members), rng.randrange(len(members))
    name, body = [(n, d) for key in "0123" for n, d in _sample(key)][at]
    number = rng.choice(NUMBERS)
    octal = b"%o" % number if number < 8**11 else b"\x80" + number.to_bytes(11, "big")
    what = rng.randrange(9)
    if what == 0:
        members[at] = _member(rng.choice(NAMES), body)
    elif what == 1:
        members[at] = _member(name, body, rng.choice(KINDS), link=rng.choice((b"0.jpg", b"/etc/passwd", b"../x", b"")))
    elif what == 2:
        field = rng.choice(
            (octal, b"-1", b"9" * 11, b"\xff" * 12, b"7" * 12, b"", b"0x10", b"1 2", b"\x80" + b"\xff" * 11)
        )
        members[at] = _member(name, body, size=field)
    elif what == 3:
        field = rng.choice(("mode", "uid", "mtime", "checksum", "magic", "prefix", "device"))
        members[at] = _member(name, body, **{field: rng.choice((octal, b"\xff" * 200, b"x", b"-1", b"\xe9" * 8))})
    elif what == 4:
        records = b"".join(rng.choice(RECORDS) for _ in range(rng.choice((1, 1, 2))))
        members.insert(at, _member(b"PaxHeader/x", records, rng.choice((b"x", b"x", b"g"))))
    elif what == 5:
        long = rng.choice((b"n" * 300 + b".jpg\0", b"", b"\xff" * 600, b"a/" * 5000, bytes(600), name))
        members.insert(at, _member(b"././@LongLink", long, rng.choice((b"L", b"L", b"K"))))
    elif what == 6:
        entry = damaged_tree(json.loads(_sample("0")[1][1]), rng, ENTRIES)
        data = as_json(entry, rng) if rng.random() < 0.7 else damaged(body, rng)
        members[at] = _member(rng.choice((b"0.json", name)), data)
    elif what == 7:
        rng.shuffle(members)
    else:
        members[at:at] = rng.choice(
            ([members[at]], [_member(b"._" + name, b"\0\5\x16\7")], [bytes(512)], [_member(b"0", b"", b"5")])
        )
    return members


def _packed(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    chance = rng.random()
    if chance < 0.75:
        return ".tar", data
    if chance < 0.76:
        return ".tar.gz", _bomb()
    ending, pack = rng.choice(
        ((".tar.gz", gzip.compress), (".tar.gz", gzip.compress), (".tar.bz2", bz2.compress), (".tar.xz", lzma.compress))
    )
    packed = pack(data, mtime=0) if pack is gzip.compress else pack(data)
    return (".tar" if rng.random() < 0.3 else ending), packed if rng.random() < 0.3 else damaged(packed, rng)


@cache
def _bomb() -> bytes:
    """A tar of one member of two gigabytes, in few bytes."""
    zeros = gzip.compress(bytes(16 << 20), 1, mtime=0)  # members of a gzip file are read one after the other
    head = _member(b"0.jpg", b"", size=b"%011o\0" % (2 << 30))
    return gzip.compress(head, mtime=0) + zeros * 128


def _read(shards: Path, keys: dict[str, Any]) -> None:
    """Every sample of the folder, as training reads them."""
    dataset = reading_tools.shards(shards, **keys)
    if dataset.sequential:
        reading_tools.take(reading_tools.stream([dataset], steps=4), 4)
        return
    for index in range(min(len(dataset), 12)):
        dataset.example(index, 0)
