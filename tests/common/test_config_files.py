"""Whatever a YAML or an override holds, it is a configuration or one line that says what is wrong with it."""

from __future__ import annotations

import dataclasses
import os
import socket

import pytest

from chatbridge.common.config import load_config
from chatbridge.common.config_files import read_config_file
from chatbridge.common.schema import ConfigError, bind, key
from tests.common.test_schema import Outer


def refused(path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config_file(path, overrides)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 1000
    return said


@pytest.fixture
def write(tmp_path):
    def to_file(data: str | bytes):
        file = tmp_path / "run.yaml"
        file.write_bytes(data if isinstance(data, bytes) else data.encode())
        return file

    return to_file


DOUBLED = "a0: word\n" + "\n".join(f"a{i + 1}: ${{a{i}}}${{a{i}}}" for i in range(40))
IN_LISTS = "p:\n  a0: word\n" + "\n".join(f"  a{i + 1}: ['${{..a{i}}}', '${{p.a{i}}}']" for i in range(40))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "empty or not a mapping"),
        ("- a\n- b", "empty or not a mapping"),
        ("5", "cannot be read as YAML"),
        ("a: [1, 2\nb: }", "cannot be read as YAML"),
        ("a: 1\na: 2", "duplicate key"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("a: " + "[" * 150 + "]" * 150, "nested too deeply"),  # well formed, and too deep for OmegaConf
        ("a: &a {b: *a}", "holds itself"),
        ("a: " + "9" * 5000, "cannot be read as YAML"),
        ("null: 1", "cannot be read as YAML"),
        ("? [1]\n: 2", "cannot be read as YAML"),
        ("a: !!set {b, c}", "cannot be read as YAML"),
        ("a: !!python/object/apply:os.system [ls]", "cannot be read as YAML"),
        ('a: "\\ud83d"', "cannot be read as YAML"),
        (b"a: caf\xe9", "not UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        ("a: ${b}\nb: ${c}\nc: ${a}", "cursive interpolation"),
        ("a: ${nowhere.b}", "'nowhere.b' not found"),
        ("a: ${oc.env:CHATBRIDGE_NOT_SET}", "CHATBRIDGE_NOT_SET"),
        ("a: ${no.such.resolver:1}", "Unsupported interpolation type"),
        ("a: ${b", "cannot be read as YAML"),
        (DOUBLED, "characters once its ${...} are written out"),
        (IN_LISTS, "characters once its ${...} are written out"),
        ("a: x\n" * 300_000, "more than the 1,048,576 bytes"),
    ],
)
def test_a_yaml_that_is_no_configuration(write, data, reason):
    said = refused(write(data))
    assert reason in said and "run.yaml: " in said


def test_what_refers_to_others_is_resolved(write, monkeypatch):
    monkeypatch.setenv("CHATBRIDGE_DATA", "/data")
    text = "p: {root: '${oc.env:CHATBRIDGE_DATA}', lists: '${.root}/lists', which: lists}\na: ${p.${p.which}}/x"
    assert read_config_file(write(b"\xef\xbb\xbf" + text.encode())).values["a"] == "/data/lists/x"


def test_a_yaml_that_is_no_file(tmp_path):
    assert "no such configuration file" in refused(tmp_path / "none.yaml")
    assert "no such configuration file" in refused(tmp_path / ("n" * 300))
    assert "is a folder" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "is a pipe" in refused(tmp_path / "pipe.yaml")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(tmp_path / "socket.yaml"))
        assert "cannot be read" in refused(tmp_path / "socket.yaml")


OVERRIDES = [
    "oops",
    "=1",
    "a..b=1",
    ".a=1",
    "a.=1",
    "[",
    "[=1",
    "a[0=1",
    "a[0]=1",
    "a=[1",
    "a=&x [*x]",
    "a=${b",
    "a.0=1",
]
PLUGINS = ["[null]", "a.py", "{}", "[[a.py]]", "{a: b}", "null", "[3]", "['']", "[.]", "[..a]"]


@pytest.mark.parametrize("override", OVERRIDES)
def test_an_override_that_is_none(write, override):
    assert override in refused(write("a: [x]\nc: {d: 1}"), "c.d=2", override)


def test_overrides_of_every_sort(write):
    file = write("a: {b: 1, c: '${a.b}'}\nd: [1]")
    assert read_config_file(file, ["a.b=2", "d=[1,2]", "e.f={g: x=y}", "a.h="]).values == {
        "a": {"b": 2, "c": 2, "h": None},
        "d": [1, 2],
        "e": {"f": {"g": "x=y"}},
    }
    assert read_config_file(file, ["a=5"]).values["a"] == 5  # binding says what is wrong with it


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("steps", 10**400, "0 is beyond 64 bits"),
        ("steps", 2**64, "beyond 64 bits"),
        ("steps", float("nan"), "expected int"),
        ("steps", True, "expected int, found bool True"),
        ("steps", [1], "expected int, found list [1]"),
        ("inner", [1], "expected a mapping of keys, found list [1]"),
        ("inner", None, "found nothing (null)"),
        ("inner", {True: 1}, "inner.True: unknown key"),
        ("inner", {"rate": 10**400}, "beyond 64 bits"),
        ("inner", {"rate": float("nan")}, "nan is not a finite number"),
        ("inner", {"rate": float("-inf")}, "-inf is not a finite number"),
        ("inner", {"rate": b"1"}, "expected float, found bytes"),
        ("colour", 7, "expected a mapping with 'name: <colour>'"),
        ("colour", {"name": ["blue"]}, "expected a mapping with 'name: <colour>'"),
        ("many", [1], "expected a mapping"),
        ("many", {True: {"kind": "blue"}}, "expected a name, found bool True"),
        ("many", {"a\0": {"kind": "blue"}}, "NUL"),
        ("many", {"a": None}, "many.a: expected a mapping"),
        ("names", "a", "expected a list, found str 'a'"),
        ("names", [None], "names[0]: expected str, found nothing"),
        ("names", ["\ud83d"], "half an emoji"),
        ("file", "n" * 300, "does not exist"),
        ("file", "~nobody-of-that-name/x", "does not exist"),
        ("file", "", "expected a path, found an empty text"),
        ("file", "a\0b", "NUL"),
    ],
)
def test_values_of_every_sort(where, value, said):
    with pytest.raises(ConfigError) as caught:
        bind(Outer, {"steps": 1, where: value}, "run.yaml")
    (problem,) = caught.value.problems
    assert said in problem and problem.startswith("run.yaml: ") and "\n" not in problem


def test_numbers_that_python_does_not_write_out(tmp_path):
    huge = "0x" + "f" * 5000
    for text in (f"? {huge}\n: 1", f"processors: {{? {huge} : 1}}", f"mixture: {huge}", f"plugins: [[{huge}]]"):
        file = tmp_path / "run.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError, match="thousands of digits|Exceeds the limit"):
            load_config(file)


def test_an_error_is_made_of_lines():
    with pytest.raises(AssertionError, match="one line a letter"):
        ConfigError("a text")


def test_keys_whose_types_cannot_be_told():
    class Wrong:
        depth: NoSuchType = key(1)  # noqa: F821

    with pytest.raises(ConfigError, match="NoSuchType"):
        bind(dataclasses.dataclass(kw_only=True)(Wrong), {})
    with pytest.raises(ConfigError, match="dict does not declare its keys as a dataclass"):
        bind(dict, {})


@pytest.mark.parametrize("plugins", PLUGINS)
def test_plugins_that_are_no_names(write, plugins):
    with pytest.raises(ConfigError) as caught:
        load_config(write(f"plugins: {plugins}"))
    (problem,) = caught.value.problems
    assert "run.yaml: plugins" in problem and "\n" not in problem
