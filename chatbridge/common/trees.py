"""A configuration's text as plain values: YAML, ``${...}`` resolved, with what the command line puts in its place."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from chatbridge.common.documents import DocumentError, check_yaml, read_bytes
from chatbridge.common.schema import ConfigError

MOST_BYTES, MOST_NODES = 1 << 20, 100_000
"""Of a configuration's file, and values in it; the published ones have 12 KB and 600."""

MOST_WRITTEN_OUT = 1 << 22
"""Characters of all values once ``${...}`` stands for what it refers to: twenty keys, each of which is the one before
twice, double a word to a million."""

T = TypeVar("T")

_KEY = re.compile(r"[^.\[\]\s]+(\.[^.\[\]\s]+)*")
_REFERENCE = re.compile(r"\.*[^\s.\[\]{}$:,/'\"]+(?:[.\[\]]+[^\s.\[\]{}$:,/'\"]+)*")


def read_tree(path: str | Path, overrides: Sequence[str] = ()) -> dict[Any, Any]:
    """What a YAML file says, with overrides ("a.b=c", later ones win) merged into it.

    Raises:
        ConfigError: whatever is wrong with the file's text, an override, or a ``${...}``; one line.
    """
    if not os.path.exists(path):
        raise ConfigError([f"{path}: no such configuration file (looked for {os.path.abspath(path)})"])
    told = f"{path}: cannot be read as YAML"
    try:
        text = check_yaml(read_bytes(path, MOST_BYTES), path, MOST_NODES)
    except DocumentError as error:
        raise ConfigError([f"{told}: it {error.reason}"]) from None
    tree = _attempt(told, lambda: OmegaConf.create(OmegaConf.load(io.StringIO(text))))
    for override in overrides:
        tree = _override(tree, override)
    growth = _attempt(told, lambda: _written_out(OmegaConf.to_container(tree, resolve=False)))
    if growth > MOST_WRITTEN_OUT:
        raise ConfigError([f"{path}: has {growth:,} characters once its ${{...}} are written out; refer to less"])
    plain = _attempt(told, lambda: OmegaConf.to_container(tree, resolve=True))
    if not isinstance(plain, dict) or not plain:
        raise ConfigError([f"{path}: is empty or not a mapping of keys"])
    return plain


def _override(tree: Any, override: str) -> Any:
    name, equals, value = override.partition("=")
    told = f"--options {override}"
    if not equals or not _KEY.fullmatch(name):
        raise ConfigError([f"{told}: expected key=value, for instance run.init_lr=1e-4"])
    try:
        check_yaml(value, told, MOST_NODES)
    except DocumentError as error:
        raise ConfigError([str(error)]) from None
    return _attempt(told, lambda: OmegaConf.merge(tree, OmegaConf.from_dotlist([override])))


def _attempt(told: str, step: Callable[[], T]) -> T:
    """A step of OmegaConf, which lets through whatever its parsers, PyYAML and Python raise."""
    try:
        return step()
    except RecursionError:
        raise ConfigError([f"{told}: nested too deeply, or a ${{...}} leads back to itself"]) from None
    except Exception as error:
        lines = [line for line in str(error).splitlines() if "object_type=" not in line]
        raise ConfigError([f"{told}: {' '.join(' '.join(lines).split()) or type(error).__name__}"]) from None


def _written_out(tree: Any) -> int:
    """Characters of a tree's values when every ``${...}`` in them is replaced; too many rather than too few.

    Whatever looks like the name of a value in a text with ``${`` is taken to refer to it.
    """
    known: dict[tuple, int] = {}

    def size(place: tuple) -> int:
        if place not in known:
            known[place] = 0  # what refers to itself is OmegaConf's to refuse
            value = _at(tree, place)
            if isinstance(value, (Mapping, list)):
                names = value if isinstance(value, Mapping) else range(len(value))
                known[place] = 1 + sum(size((*place, name)) for name in names)
            else:
                known[place] = 1 + len(value) if isinstance(value, (str, bytes)) else 1
                if isinstance(value, str) and "${" in value:
                    known[place] += sum(size(other) for other in _referred(tree, place, value))
        return known[place]

    return size(())


def _referred(tree: Any, place: tuple, text: str) -> list[tuple]:
    found = []
    for written in _REFERENCE.findall(text[text.index("${") :]):
        name = written.lstrip(".")
        above = len(written) - len(name)  # `${.a}` is beside it, `${..a}` one higher
        names = tuple(part for part in re.split(r"[.\[\]]+", name) if part)
        target = (*(place[: max(0, len(place) - above)] if above else ()), *names)
        if _at(tree, target) is not None:
            found.append(target)
    return found


def _at(tree: Any, place: tuple) -> Any:
    for name in place:
        if isinstance(tree, Mapping):
            tree = tree.get(name)
        elif isinstance(tree, list) and str(name).isdigit() and int(name) < len(tree):
            tree = tree[int(name)]
        else:
            return None
    return tree
