"""A configuration's text as plain values: YAML laid over its `base:`, what the command line puts in its place, and
``${...}`` resolved."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from chatbridge.common.documents import DocumentError, check_yaml, read_bytes
from chatbridge.common.registry import registries
from chatbridge.common.schema import ConfigError, Origin, join

MAX_BYTES, MAX_NODES = 1 << 20, 100_000
"""Of a configuration's file, and values in it; the published ones have 12 KB and 600."""

MAX_EXPANDED = 1 << 22
"""Characters of all values once ``${...}`` stands for what it refers to: twenty keys, each of which is the one before
twice, double a word to a million."""

T = TypeVar("T")
KeyPath = tuple[Any, ...]
"""Of a value in a tree: ("model", "weights", 0)."""

_KEY = re.compile(r"[^.\[\]\s]+(\.[^.\[\]\s]+)*")
_REFERENCE = re.compile(r"\.*[^\s.\[\]{}$:,/'\"]+(?:[.\[\]]+[^\s.\[\]{}$:,/'\"]+)*")


@dataclass
class ConfigTree:
    """What a YAML file says.

    Attributes:
        values: plain ones. files: itself, its base, the base of that, ...
        origins: key, as messages write it -> where its value comes from; empty for a file without a base.
    """

    values: dict[Any, Any]
    files: list[Path]
    origins: dict[str, Origin]


def read_config_file(path: str | Path, overrides: Sequence[str] = ()) -> ConfigTree:
    """A YAML file laid over its base, with overrides ("a.b=c", later ones win) merged into it.

    Raises:
        ConfigError: whatever is wrong with a file's text, its base, an override, or a ``${...}``; one line.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise ConfigError([f"{path}: no such configuration file (looked for {os.path.abspath(path)})"])
    merged, files, sources = read_merged(path)
    cause = _unreadable(path)
    tree = _attempt(cause, lambda: OmegaConf.create(merged))
    for override in overrides:
        tree = _override(tree, override)
    raw = _attempt(cause, lambda: OmegaConf.to_container(tree, resolve=False))
    growth = _attempt(cause, lambda: _expanded_size(raw))
    if growth > MAX_EXPANDED:
        raise ConfigError([f"{path}: has {growth:,} characters once its ${{...}} are written out; refer to less"])
    plain = _attempt(cause, lambda: OmegaConf.to_container(tree, resolve=True))
    if len(files) == 1:
        return ConfigTree(plain, files, {})
    for override in overrides:
        given = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
        sources |= {place: path for place, _ in _places(given)}
    return ConfigTree(plain, files, dict(_origins(plain, raw, sources)))


def read_merged(path: Path) -> tuple[dict[Any, Any], list[Path], dict[KeyPath, Path]]:
    """A file laid over its base, ``${...}`` as they are; itself and its bases; place -> the file it stands in.

    Mappings merge; anything else replaces what the base has there, and so does a part of another name. A null over a
    mapping or list takes it away.

    Raises:
        ConfigError: a file that cannot be read, or a base that is not there or leads back to its start.
    """
    layers: dict[Path, dict] = {}
    file: Path | None = path
    while file is not None:
        layers[file] = tree = _load(file)
        file = _base(file, tree.pop("base"), list(layers)) if "base" in tree else None
    merged: dict[Any, Any] = {}
    sources: dict[KeyPath, Path] = {(): path}
    for file, tree in reversed(layers.items()):
        _merge_into(merged, tree, (), file, sources)
    return merged, list(layers), sources


def _load(path: Path) -> dict[Any, Any]:
    """What one file says, ``${...}`` as they are."""
    cause = _unreadable(path)
    try:
        text = check_yaml(read_bytes(path, MAX_BYTES), path, MAX_NODES)
    except DocumentError as error:
        raise ConfigError([f"{cause}: it {error.reason}"]) from None
    tree = _attempt(cause, lambda: OmegaConf.create(OmegaConf.load(io.StringIO(text))))
    plain = _attempt(cause, lambda: OmegaConf.to_container(tree, resolve=False))
    if not isinstance(plain, dict) or not plain:
        raise ConfigError([f"{path}: is empty or not a mapping of keys"])
    return plain


def _base(source: Path, given: Any, files: list[Path]) -> Path:
    """The file that `source` names as its base, as messages name it."""
    if not isinstance(given, str) or not given:
        raise ConfigError([f"{source}: base: expected the path of a YAML, found {given!r}"])
    file = source.resolve().parent / os.path.expanduser(given)
    if not os.path.exists(file):
        raise ConfigError([f"{source}: base: {given!r} does not exist; looked for {os.path.normpath(file)}"])
    file = file.resolve()
    file = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    if any(os.path.samefile(file, other) for other in files):
        chain = " -> ".join(str(one) for one in [*files, file])
        raise ConfigError([f"{source}: base: {given!r} leads back to where it came from: {chain}"])
    return file


def _merge_into(below: dict, above: dict, at: KeyPath, file: Path, sources: dict[KeyPath, Path]) -> None:
    """Merge what `file` says into what its bases say, in place."""
    for name, value in above.items():
        place, old = (*at, name), below.get(name)
        if isinstance(old, dict) and isinstance(value, dict) and _same_part(old, value):
            sources[place] = file
            _merge_into(old, value, place, file, sources)
        elif isinstance(value, dict) and isinstance(old, str) and old.startswith("${"):
            key = ".".join(map(str, place))
            raise ConfigError([f"{file}: {key}: {sources[place]} has {old!r} there; change what that refers to"])
        elif value is None and isinstance(old, (dict, list)):
            del below[name]
        else:
            below[name] = value
            sources |= {inner: file for inner, _ in _places(value, place)}


def _same_part(below: Mapping, above: Mapping) -> bool:
    """Whether two nodes do not name different parts; one without a name has the usual one."""
    named = [one for one in registries() if isinstance(above.get(one.tag), str)]
    return not named or any(above[one.tag] == below.get(one.tag, one.usual) for one in named)


def _origins(plain: Any, raw: Any, sources: Mapping[KeyPath, Path]) -> Iterator[tuple[str, Origin]]:
    """Every key of the resolved tree, and where its value comes from."""

    def nearest(place: KeyPath) -> Path:
        while place not in sources:
            place = place[:-1]
        return sources[place]

    def starts_in(place: KeyPath, hops: int = 32) -> Path:
        """The file whose folder a relative path starts in: that of what a leading ``${...}`` refers to."""
        for depth in range(1, len(place) + 1):
            text = _at(raw, place[:depth])
            if isinstance(text, str) and text.startswith("${") and hops:
                for target in _referred(raw, place[:depth], text)[:1]:
                    return starts_in((*target, *place[depth:]), hops - 1)
        return nearest(place)

    folders = {file: file.resolve().parent for file in set(sources.values())}
    for place, key in _places(plain):
        yield key, Origin(str(nearest(place)), folders[starts_in(place)])


def _places(tree: Any, at: KeyPath = (), key: str = "") -> Iterator[tuple[KeyPath, str]]:
    """Every place in a tree, and the key that messages call it by."""
    yield at, key
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _places(value, (*at, name), join(key, name))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _places(value, (*at, index), f"{key}[{index}]")


def _unreadable(path: Path) -> str:
    return f"{path}: cannot be read as YAML"


def _override(tree: Any, override: str) -> Any:
    name, equals, value = override.partition("=")
    what = f"--options {override}"
    if not equals or not _KEY.fullmatch(name):
        raise ConfigError([f"{what}: expected key=value, for instance run.init_lr=1e-4"])
    if name == "base":
        raise ConfigError([f"{what}: a base is named in a file, which --cfg-path then names"])
    try:
        check_yaml(value, what, MAX_NODES)
    except DocumentError as error:
        raise ConfigError([str(error)]) from None
    return _attempt(what, lambda: OmegaConf.merge(tree, OmegaConf.from_dotlist([override])))


def _attempt(what: str, step: Callable[[], T]) -> T:
    """A step of OmegaConf, which lets through whatever its parsers, PyYAML and Python raise."""
    try:
        return step()
    except RecursionError:
        raise ConfigError([f"{what}: nested too deeply, or a ${{...}} leads back to itself"]) from None
    except Exception as error:
        lines = [line for line in str(error).splitlines() if "object_type=" not in line]
        raise ConfigError([f"{what}: {' '.join(' '.join(lines).split()) or type(error).__name__}"]) from None


def _expanded_size(tree: Any) -> int:
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
