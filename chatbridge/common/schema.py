"""Declared, typed configuration: dataclasses whose fields know their help, unit, range and registry.

`bind` turns a plain mapping (what OmegaConf read) into an instance of a dataclass and reports every problem it
finds, not only the first: unknown keys with the nearest known one, wrong types, values out of range, missing paths.
"""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from chatbridge.common.documents import repaired
from chatbridge.common.registry import COMPAT, DEFAULT, Registry, RegistryEntry, nearest

REQUIRED = MISSING
"""Default of a key that the user must give."""

T = TypeVar("T")


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one line each."""

    def __init__(self, problems: Sequence[str]):
        assert not isinstance(problems, str), "a list of lines: a single text would be one line a letter"
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def key(
    default: Any = REQUIRED,
    help: str = "",
    unit: str = "",
    choices: tuple | list | None = None,
    registry: Registry | None = None,
    path: str | bool = False,
    low: float | None = None,
    high: float | None = None,
    resume: Literal["must_match", "free"] = "must_match",
) -> Any:
    """Declare one configuration key as a dataclass field.

    Args:
        default: its value when the YAML does not give it; a list, dict or class is called or copied per instance; of
            a component (or a list of them), the registered name.
        help: one sentence on what it does; unit: of its value ("frames", "tokens", "Hz").
        choices: the only values allowed.
        registry: the node is a component ``{name: registered name, ...its keys}``, or its bare name (or a list or dict
            of them).
        path: True or "input" for a file or folder that must exist, "output" for one that the run makes.
        low, high: inclusive bounds of a number.
        resume: "free" for a key that says where and how fast a run computes, or what it reports, but not what it
            learns: a run may go on with another value.
    """
    kind = "input" if path is True else path
    metadata = {"help": help, "unit": unit, "choices": choices, "registry": registry, "path": kind}
    metadata |= {"low": low, "high": high, "resume": resume}
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    if registry is not None and isinstance(default, (str, list)):
        metadata["default"] = default
        return dataclasses.field(default_factory=lambda: registry.configured(default), metadata=metadata)
    if isinstance(default, (list, dict, set)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Origin(NamedTuple):
    """Where a value comes from: the file in which its key stands, and where a relative path in it starts."""

    file: str
    folder: Path


@dataclass
class MissingPath:
    """A path that a configuration names and that does not exist."""

    file: str
    key: str
    given: str
    looked_in: list[str]

    @property
    def problem(self) -> str:
        return f"{self.file}: {self}"

    def __str__(self) -> str:
        return f"{self.key}: '{self.given}' does not exist; looked for " + " and ".join(self.looked_in)


class Binder:
    """Binds one file's mapping; gathers the problems and the missing paths on the way.

    Args:
        source: the file's name, for messages.
        folder: what relative paths are resolved against (first), the working folder being the second place.
        origins: key -> where its value comes from, for keys of another file (`base:`); others are as the key above.
    """

    def __init__(self, source: str, folder: Path, origins: Mapping[str, Origin] | None = None):
        self.origins = {**(origins or {}), "": Origin(source, folder)}
        self.problems: list[str] = []
        self.missing: list[MissingPath] = []

    def problem(self, where: str, text: str) -> None:
        file = self.origin(where).file
        self.problems.append(f"{file}: {where}: {text}" if where else f"{file}: {text}")

    def origin(self, where: str) -> Origin:
        """Of a key, "model.llm.path" or "templates[0]", or of the nearest one above it."""
        while where not in self.origins:
            where = where[: max(where.rfind("."), where.rfind("["), 0)]
        return self.origins[where]

    def dataclass(self, cls: type[T], node: Any, where: str, skip: tuple[str, ...] = ()) -> T | None:
        """An instance of `cls` from a mapping, or None when something in it is wrong (the problem is noted)."""
        if not isinstance(node, Mapping):
            self.problem(where, f"expected a mapping of keys, found {_describe(node)}")
            return None
        try:
            hints, declared = typing.get_type_hints(cls), dataclasses.fields(cls)
        except (NameError, TypeError) as error:
            self.problem(where, f"{cls.__qualname__} does not declare its keys as a dataclass: {error}")
            return None
        fields = {f.name: f for f in declared if f.init}
        before = len(self.problems)
        values = {}
        for name, value in node.items():
            if name in skip:
                continue
            if name not in fields:
                moved = getattr(cls, "MOVED", {}).get(name)  # earlier keys and where they are now
                known = [*fields, *skip]
                hint = f"it is {moved} now" if moved else nearest(name if isinstance(name, str) else "", known)
                self.problem(join(where, name), f"unknown key; {hint}")
                continue
            values[name] = self.value(hints[name], value, join(where, name), fields[name].metadata)
        for name, f in fields.items():
            if name not in node and f.default is MISSING and f.default_factory is MISSING:
                self.problem(join(where, name), f"required key is missing ({f.metadata.get('help') or f.type})")
        if len(self.problems) > before:
            return None
        try:
            return cls(**values)
        except ValueError as error:  # a dataclass may check how its keys go together, in __post_init__
            self.problem(where, str(error))
            return None

    def component(self, registry: Registry, node: Any, where: str) -> Any:
        """A component's typed configuration from ``{name: registered name, ...}``, or from its bare name."""
        tag = registry.tag
        if isinstance(node, str):
            node = {tag: node}
        if isinstance(node, Mapping) and registry.usual is not None and tag not in node:
            node = {tag: registry.usual, **node}
        if not isinstance(node, Mapping) or not isinstance(node.get(tag), str):
            self.problem(where, f"expected a mapping with '{tag}: <{registry.kind}>', found {_describe(node)}")
            return None
        try:
            entry = registry.get(node[tag])
        except ValueError as error:
            self.problem(join(where, tag), str(error))
            return None
        if entry.config is None:
            extra = [k for k in node if k != tag]
            if extra:
                self.problem(join(where, extra[0]), f"{registry.kind} '{entry.name}' takes no keys")
            return entry.target
        if not entry.variants:  # a part of one's own may stand where the package's part, and its usual `compat`, stood
            usual = node.get(COMPAT) == DEFAULT and COMPAT not in {f.name for f in dataclasses.fields(entry.config)}
            return self.dataclass(entry.config, node, where, skip=(tag, COMPAT) if usual else (tag,))
        compat = self.value(str, node.get(COMPAT, DEFAULT), join(where, COMPAT), compat_key(entry))
        chosen = entry.variants.get(compat, entry)
        return self.dataclass(chosen.config, node, where, skip=(tag, COMPAT))

    def value(self, hint: Any, value: Any, where: str, metadata: Mapping[str, Any]) -> Any:
        """One value, checked against its type hint and its key's metadata."""
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            if value is None and type(None) in args:
                return None
            return self._union([a for a in args if a is not type(None)], value, where, metadata)
        if origin is dict or hint is dict:
            return self._dict(args, value, where, metadata)
        if origin in (list, tuple) or hint is list:
            return self._list(hint, args, value, where, metadata)
        if metadata.get("registry") is not None:
            return self.component(metadata["registry"], value, where)
        if dataclasses.is_dataclass(hint):
            return self.dataclass(hint, value, where)
        return self._leaf(hint, value, where, metadata)

    def _union(self, options: list, value: Any, where: str, metadata: Mapping[str, Any]) -> Any:
        """The first option whose check passes; when none does, the problems of the last one tried."""
        for option in options[:-1]:
            trial = Binder(*self.origins[""], self.origins)
            result = trial.value(option, value, where, metadata)
            if not trial.problems:
                self.missing += trial.missing
                return result
        return self.value(options[-1], value, where, metadata)

    def _dict(self, args: tuple, value: Any, where: str, metadata: Mapping[str, Any]) -> Any:
        if not isinstance(value, Mapping):
            self.problem(where, f"expected a mapping, found {_describe(value)}")
            return None
        inner, bound = args[1] if args else Any, {}
        for name, held in value.items():
            here = join(where, name)
            if not isinstance(name, str) and (type(name) is not int or name.bit_length() > 64):
                self.problem(here, f"expected a name, found {_describe(name)}; put it between quotes")
            elif problem := _unwritable(str(name)):
                self.problem(here, problem)
            else:
                bound[str(name)] = self.value(inner, held, here, metadata)
        return bound

    def _list(self, hint: Any, args: tuple, value: Any, where: str, metadata: Mapping[str, Any]) -> Any:
        if not isinstance(value, (list, tuple)):
            self.problem(where, f"expected a list, found {_describe(value)}")
            return None
        inner = args[0] if args else Any
        items = [self.value(inner, v, f"{where}[{i}]", metadata) for i, v in enumerate(value)]
        return tuple(items) if typing.get_origin(hint) is tuple else items

    def _leaf(self, hint: Any, value: Any, where: str, metadata: Mapping[str, Any]) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        wrong = hint is not Any and not (number if hint is float else isinstance(value, hint))
        if wrong or (isinstance(value, bool) and hint is int):
            self.problem(where, f"expected {hint.__name__}, found {_describe(value)}")
            return None
        problem = _unwritable(value) if isinstance(value, str) else _out_of_range(value, metadata) if number else None
        if problem:
            self.problem(where, problem)
            return None
        choices = metadata.get("choices")
        if choices and value not in choices:
            hint_text = nearest(value, [str(c) for c in choices]) if isinstance(value, str) else f"one of {choices}"
            self.problem(where, f"{_repr(value)} is not allowed; {hint_text}")
        if metadata.get("path"):
            return self._path(value, where, metadata["path"])
        return float(value) if hint is float else value

    def _path(self, value: str, where: str, kind: str) -> str:
        if not value:
            self.problem(where, "expected a path, found an empty text")
            return value
        path, origin = Path(os.path.expanduser(value)), self.origin(where)
        places = [path] if path.is_absolute() else [origin.folder / path, Path.cwd() / path]
        places = list(dict.fromkeys(Path(os.path.abspath(p)) for p in places))
        if kind == "output":
            return str(places[0])
        for place in places:
            if os.path.exists(place):  # Path.exists raises where a name is too long, or a folder may not be searched
                return str(place)
        self.missing.append(MissingPath(origin.file, where, value, [str(p) for p in places]))
        return str(places[0])


def compat_key(entry: RegistryEntry) -> dict[str, Any]:
    """What `key` would say of the key `COMPAT` of a part with variants."""
    text = "; ".join(f"{compat}: {variant.help}" for compat, variant in entry.variants.items())
    return {"help": text, "choices": (DEFAULT, *entry.variants)}


def bind(cls: type[T], mapping: Mapping, source: str = "configuration", folder: str | Path = ".") -> T:
    """An instance of the dataclass `cls` from a mapping, every key checked.

    Raises:
        ConfigError: with one line per problem, missing paths included.
    """
    binder = Binder(source, Path(folder))
    result = binder.dataclass(cls, mapping, "")
    problems = binder.problems + [m.problem for m in binder.missing]
    if problems:
        raise ConfigError(problems)
    return result


def inherited(config: T, outer: Any) -> T:
    """A component's configuration with its keys that are null taken from the keys of the same names around it."""
    names = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) is None and hasattr(outer, f.name)]
    return dataclasses.replace(config, **{name: getattr(outer, name) for name in names})


def to_plain(config: Any, registry: Registry | None = None) -> Any:
    """The reverse of `bind`: dataclasses to dicts, components of `registry` with their name under its tag."""
    if isinstance(config, dict):
        return {name: to_plain(value, registry) for name, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_plain(value, registry) for value in config]
    name = registry.node_of(config) if registry is not None and config is not None else {}
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return name or config  # a component without keys is its class
    keys = {f.name: to_plain(getattr(config, f.name), f.metadata.get("registry")) for f in dataclasses.fields(config)}
    return {**name, **keys}


def join(where: str, name: Any) -> str:
    """A key below another, as messages write it."""
    text = name if isinstance(name, str) else _repr(name)
    return f"{where}.{text}" if where else text


def _unwritable(text: str) -> str | None:
    """Why a text cannot be passed on to the system and to files, if it cannot."""
    if "\0" in text:
        return "holds a character NUL, which nothing can be called"
    return "holds half an emoji (a lone surrogate), which cannot be written" if repaired(text) != text else None


def _out_of_range(value: float, metadata: Mapping[str, Any]) -> str | None:
    low, high = metadata.get("low"), metadata.get("high")
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    if low is not None and value < low:
        return f"{_repr(value)} is below the smallest allowed value, {low}"
    if high is not None and value > high:
        return f"{_repr(value)} is above the largest allowed value, {high}"
    return None if -(2**63) <= value < 2**63 or isinstance(value, float) else f"{_repr(value)} is beyond 64 bits"


def _describe(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    text = _repr(value)
    return f"{type(value).__name__} {text}" if len(text) < 80 else type(value).__name__


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python does not write out integers of thousands of digits
        return "a number of thousands of digits"
