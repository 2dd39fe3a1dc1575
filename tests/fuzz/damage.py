"""What is done to bytes, texts, trees and files. Every function takes its randomness as `rng`."""

from __future__ import annotations

import copy
import datetime
import json
import os
import random
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.target import SENTINEL

NUMBERS = (
    0, 1, 2, 3, 7, 8, 16, 64, 127, 128, 255, 256, 1000, 15999, 44101, 65535, 65536, 2**24 - 1, 2**31 - 1, 2**31,
    2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1,
)  # fmt: skip
"""What lengths, sides, rates and counts are replaced by."""

PIPE = f"pipe:touch {SENTINEL}"

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.0, -0.5, 0.5, 1e-320,
    1e308, float("inf"), float("-inf"), float("nan"), "", " ", "0", "-1", "nan", "null", "true", ".", "..", "/", "~",
    "/dev/zero", "/dev/stdin", "../../..", "a" * 300, "a/" * 3000, "x\0y", "half \ud83d", "\udcff", "a\nb", "é" * 9,
    "${nothing}", "${run}", "${oc.env:HOME}", "${", "%s", "{0}", "auto", "cpu", "latest", PIPE, "http://127.0.0.1:9/x",
    "file:///etc/passwd", "*", "[", [], {}, [None], [[]], [{}], [0], [1, 2], ["a", "a"], {"": None}, {"a": {"b": 1}},
    ["x"] * 1000, {"name": "nothing"}, b"\xff\0", datetime.date(2020, 1, 1), {1, 2}, (1, 2),
)  # fmt: skip
"""What values are replaced by. JSON has no names for some of them; they are left out there."""


DEEP = "a-list-in-a-list"
"""Stands for lists in lists, deeper than trees can be handled here; see `deepened`."""


def deepened(text: str) -> str:
    """JSON or YAML text with its `DEEP` values as deep as they are meant to be."""
    deep = "[" * 3000 + "]" * 3000
    return text.replace(f'"{DEEP}"', deep).replace(DEEP, deep)


def damaged(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Bytes with one to four faults, more of them near the beginning, where headers are."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        rng.choice(FAULTS_OF_BYTES)(found, rng, others)
    return bytes(found)


def _place(found: bytearray, rng: random.Random) -> int:
    most = len(found) if rng.random() < 0.4 else min(len(found), rng.choice((16, 64, 256, 1024)))
    return rng.randrange(max(1, most))


def _bits(found: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if found:
            found[_place(found, rng)] ^= 1 << rng.randrange(8)


def _number(found: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    at, width, order = _place(found, rng), rng.choice((1, 2, 4, 4, 8)), rng.choice(("big", "little"))
    found[at : at + width] = (rng.choice(NUMBERS) & (256**width - 1)).to_bytes(width, order)


def _overwritten(found: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    at, length = _place(found, rng), rng.choice((1, 4, 16, 100, 1000))
    length = min(length, len(found) - at)
    found[at : at + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))


def _cut(found: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    del found[rng.randrange(len(found) + 1) :]


def _removed(found: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    at = _place(found, rng)
    del found[at : at + rng.choice((1, 2, 8, 100, 4096))]


def _repeated(found: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    at, length = _place(found, rng), rng.choice((1, 8, 64, 512))
    found[at:at] = found[at : at + length] * rng.choice((1, 2, 50))


def _inserted(found: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    at = _place(found, rng)
    found[at:at] = rng.choice((b"\0", b"\xff" * 7, rng.randbytes(16), bytes(512), b"%n%s", b"\xe9", b"\x1b[2J"))


def _spliced(found: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    if others:
        other = rng.choice(others)
        found[rng.randrange(len(found) + 1) :] = other[rng.randrange(len(other) + 1) :]


FAULTS_OF_BYTES: tuple[Callable[[bytearray, random.Random, Sequence[bytes]], None], ...] = (
    _bits, _bits, _number, _number, _number, _overwritten, _cut, _removed, _repeated, _inserted, _spliced,
)  # fmt: skip


def damaged_text(text: str, rng: random.Random, signs: Sequence[str]) -> bytes:
    """Text as bytes, with faults that a person, an editor or a broken transfer makes; `signs` are the language's."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(text) + 1)
        line = text.rfind("\n", 0, at) + 1
        text = rng.choice((
            lambda at=at, text=text: text[:at] + rng.choice(signs) + text[at:],
            lambda at=at, text=text: text[:at] + rng.choice(signs) + text[at + 1 :],
            lambda at=at, text=text: text[:at] + text[at + rng.choice((1, 5, 80)) :],
            lambda at=at, text=text: text[:at],
            lambda line=line, text=text: text[:line] + rng.choice(signs) + text[line:],
            lambda line=line, text=text: text[:line] + text[line : line + 60] * 2 + text[line:],
            lambda text=text: text + rng.choice(signs),
            lambda text=text: text + text,
        ))()  # fmt: skip
    data = text.encode("utf-8", "surrogatepass")
    return rng.choice((
        lambda: data, lambda: data, lambda: data, lambda: data, lambda: data, lambda: data,
        lambda: damaged(data, rng), lambda: b"\xef\xbb\xbf" + data, lambda: text.encode("utf-16", "surrogatepass"),
        lambda: text.encode("latin-1", "replace") + b"\xe9", lambda: data + b"\0" * 40,
    ))()  # fmt: skip


def damaged_tree(tree: Any, rng: random.Random, odd: Sequence[Any] = ODD, count: int | None = None) -> Any:
    """A copy in which values are odd and keys are renamed, gone or somewhere else."""
    root = {"": copy.deepcopy(tree)}
    for _ in range(count or rng.choice((1, 1, 1, 2, 3))):
        holders = list(_holders(root))
        holder, key = rng.choice(holders)
        what = rng.random()
        if what < 0.6 or not isinstance(holder, dict) or not key:
            holder[key] = copy.deepcopy(rng.choice(odd)) if rng.random() < 0.98 else DEEP
        elif what < 0.7:
            renamed = rng.choice((key + "x", key[:-1], key.upper(), "", "__class__", "half \ud83d"))
            holder[renamed] = holder.pop(key)
        elif what < 0.85:
            del holder[key]
        else:
            other, _ = rng.choice([pair for pair in holders if isinstance(pair[0], dict)])
            other[key] = copy.deepcopy(holder[key])
    return root[""]


def _holders(tree: Any) -> Any:
    """(container, key) of every value."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs):
        if isinstance(key, (str, int)):
            yield tree, key
            yield from _holders(value)


def as_json(tree: Any, rng: random.Random) -> bytes:
    """JSON text of a tree, in a form that other writers use, too."""
    text = json.dumps(tree, default=str, ensure_ascii=rng.random() < 0.5, allow_nan=True)
    return deepened(text).encode("utf-8", "surrogatepass")


def misplaced(path: Path, rng: random.Random) -> str:
    """Put something else in a file's place; says what."""
    kind = rng.choice((
        "pipe", "socket", "folder", "endless", "loop", "dangling", "empty", "pointer", "page", "text", "zeros", "deep"
    ))  # fmt: skip
    if path.is_dir() and not path.is_symlink():
        return "left alone"
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's whole name may have a hundred letters
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name[:90])
        os.chdir(here)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("endless", "loop", "dangling"):
        path.symlink_to({"endless": "/dev/zero", "loop": path.name, "dangling": "nothing-there"}[kind])
    else:
        path.write_bytes({
            "empty": b"",
            "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4" * 64 + b"\nsize 12345\n",
            "page": b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>\n",
            "text": b"This is not what you are looking for.\n" * 3,
            "zeros": bytes(5000),
            "deep": b"[" * 100_000,
        }[kind])  # fmt: skip
    return kind
