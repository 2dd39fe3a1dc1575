"""Reading JSON and YAML files of other people's."""

from __future__ import annotations

import os
import pickle
import socket

import pytest

from chatbridge.common.documents import (
    DocumentError,
    open_regular,
    parse_json,
    parse_yaml,
    read_json,
    read_yaml,
    repaired,
)

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not valid JSON"),
        (b"[1, 2", "not valid JSON"),
        (b'{"a": 1} {"b": 2}', "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5000, "not valid JSON"),
        (b'"caf\xe9"', "not UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
    ],
)
def test_json_that_cannot_be_read_is_one_line_with_the_file(tmp_path, text, reason):
    file = tmp_path / "list.json"
    file.write_bytes(text)
    with pytest.raises(DocumentError, match=reason) as caught:
        read_json(file)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "not valid YAML"),
        ("a: !!bool maybe", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("? [a]\n: 1", "not valid YAML"),
        ("[" * 5000, "nested too deeply"),
        ("a: &a [*a]", "an alias holds itself"),
        (BOMB, "aliases"),
        ("a: 2024-99-99", "not valid YAML"),
    ],
)
def test_yaml_that_cannot_be_read_is_one_line_with_the_file(tmp_path, text, reason):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(DocumentError, match=reason) as caught:
        read_yaml(file)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_what_is_well_formed_is_read(tmp_path):
    assert parse_json(b'\xef\xbb\xbf{"a": [1, null]}', "x") == {"a": [1, None]}
    assert parse_yaml("a: &x {b: 1}\nc: *x", "x") == {"a": {"b": 1}, "c": {"b": 1}}
    (tmp_path / "empty.yaml").write_text("")
    assert read_yaml(tmp_path / "empty.yaml") is None


def test_only_regular_files_are_opened_and_nothing_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name in ("pipe", "socket", ".", "missing", "x" * 300, "a\0b"):
            with pytest.raises(DocumentError):
                read_json(f"{tmp_path}/{name}")
    with pytest.raises(DocumentError, match="regular file"):
        open_regular("/dev/zero")
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "link").symlink_to(tmp_path / "a.json")
    assert read_json(tmp_path / "link") == []


def test_the_error_survives_the_way_back_from_a_worker():
    error = DocumentError("a.json", "is odd")
    again = pickle.loads(pickle.dumps(error))
    assert (again.source, again.reason, str(again)) == ("a.json", "is odd", "a.json: is odd")


def test_halves_of_an_emoji_are_joined_or_marked():
    assert repaired("caf\u00e9 \U0001f600") == "caf\u00e9 \U0001f600"
    assert repaired("\ud83d\ude00!") == "\U0001f600!"
    assert repaired("a \ud83d b \udce9") == "a \ufffd b \ufffd"
    repaired("\ud83d\ud83d\ude00\ude00").encode()
