"""Binding of configuration: everything wrong is named, with the nearest right thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from chatbridge.common.registry import Registry
from chatbridge.common.schema import ConfigError, bind, inherited, key, to_plain

COLOURS = Registry("colour")
PAINTS = Registry("paint", tag="kind", usual="blue")


@COLOURS.register("red", config=None)
class Red:
    pass


@dataclass(kw_only=True)
class BlueConfig:
    depth: int = key(1, low=1, high=9)


COLOURS.register("blue", config=BlueConfig)(lambda config: ("blue", config.depth))
PAINTS.register("blue", config=BlueConfig)(BlueConfig)


@dataclass(kw_only=True)
class Inner:
    rate: float = key(0.1)


@dataclass(kw_only=True)
class Outer:
    steps: int = key(help="how many")
    inner: Inner = key(Inner)
    colour: BlueConfig | None = key(None, registry=COLOURS)
    many: dict[str, BlueConfig] = key({}, registry=PAINTS)
    names: list[str] = key([], choices=("a", "b"))
    file: str | None = key(None, path=True)


def errors(mapping: dict, folder="."):
    with pytest.raises(ConfigError) as caught:
        bind(Outer, mapping, "run.yaml", folder)
    return caught.value.problems


def test_a_good_one_round_trips():
    mapping = {
        "steps": 3,
        "inner": {"rate": 1},
        "colour": {"name": "blue", "depth": 2},
        "many": {"x": {"kind": "blue"}, "y": {}},
    }
    config = bind(Outer, mapping)
    assert config.inner.rate == 1.0 and isinstance(config.inner.rate, float)
    assert COLOURS.build(config.colour) == ("blue", 2)
    plain = to_plain(config)
    assert plain["colour"] == {"name": "blue", "depth": 2}
    assert plain["many"]["x"] == plain["many"]["y"] == {"kind": "blue", "depth": 1}
    assert bind(Outer, plain) == config


def test_a_bare_name_stands_for_a_component_of_that_name():
    @dataclass(kw_only=True)
    class Parts:
        one: Any = key("blue", registry=COLOURS)
        several: list[Any] = key(["red", "blue"], registry=COLOURS)
        perhaps: list[Any] | None = key(None, registry=COLOURS)

    assert bind(Parts, {}) == Parts(one=BlueConfig(), several=[Red, BlueConfig()])
    given = {"one": "red", "several": ["blue", {"name": "blue", "depth": 2}], "perhaps": ["red"]}
    bound = bind(Parts, given)
    assert bound == Parts(one=Red, several=[BlueConfig(), BlueConfig(depth=2)], perhaps=[Red])
    assert bind(Parts, to_plain(bound)) == bound
    with pytest.raises(ConfigError, match=r"several\[1\]\.name: no colour is called 'blu'; did you mean 'blue'"):
        bind(Parts, {"several": ["red", "blu"]})


def test_keys_that_are_null_are_taken_from_around_a_component():
    @dataclass(kw_only=True)
    class Around:
        depth: int = 5
        other: int = 6

    @dataclass(kw_only=True)
    class Own:
        depth: int | None = None
        lr: float | None = None
        other: int | None = 3

    assert inherited(Own(), Around()) == Own(depth=5, lr=None, other=3)


def test_unknown_key_names_file_key_and_nearest():
    (problem,) = errors({"steps": 1, "inner": {"rat": 1.0}})
    assert problem == "run.yaml: inner.rat: unknown key; did you mean 'rate'?"


def test_every_problem_is_reported_at_once():
    problems = errors({"steps": "many", "inner": {"rate": True}, "names": ["c"], "colour": {"name": "blu"}})
    text = "\n".join(problems)
    assert len(problems) == 4
    assert "steps: expected int, found str 'many'" in text and "inner.rate: expected float" in text
    assert "names[0]: 'c' is not allowed" in text and "did you mean 'blue'?" in text


def test_bounds_and_required():
    assert "required key is missing (how many)" in errors({})[0]
    assert "above the largest allowed value, 9" in errors({"steps": 1, "colour": {"name": "blue", "depth": 10}})[0]


def test_missing_path_tells_where_it_looked(tmp_path):
    (problem,) = errors({"steps": 1, "file": "x/y.json"}, tmp_path)
    assert str(tmp_path / "x" / "y.json") in problem and "'x/y.json' does not exist" in problem
    (tmp_path / "here.json").write_text("[]")
    assert bind(Outer, {"steps": 1, "file": "here.json"}, folder=tmp_path).file == str(tmp_path / "here.json")


def test_a_registry_without_entries_says_what_fills_it():
    with pytest.raises(ValueError, match=r"no colour is registered yet.*register_all"):
        Registry("colour").get("red")


def test_a_name_taken_twice_is_an_error():
    with pytest.raises(ValueError, match="'red' is registered twice"):
        COLOURS.register("red")(object)
