"""A JSON Schema of the configuration, with which editors complete and check a YAML while one types.

It is made from the declarations that a configuration is bound by, and asks for less: no key is required, as a base may
have it; ``${...}`` may stand for anything; and a file with ``plugins:`` may name parts that are not known here, with
any keys. Draft 7 is the newest that yaml-language-server reads (its README).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from chatbridge.common.config import ConfigFile
from chatbridge.common.reference import meaning
from chatbridge.common.registry import COMPAT, DEFAULT, Registry
from chatbridge.common.schema import compat_key

Schema = dict[str, Any]

REFERENCE: Schema = {"type": "string", "pattern": r"\$\{"}
TYPES = {bool: "boolean", int: "integer", float: "number"}


def json_schema() -> Schema:
    """The schema of a file, with every registered part. Call `chatbridge.register_all` first."""
    definitions = _Definitions()
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A configuration of ChatBridge",
        **definitions.mapping(ConfigFile),
        "type": "object",
        "if": {"not": {"properties": {"plugins": {"minItems": 1}}, "required": ["plugins"]}},
        "then": {"properties": definitions.names_in(ConfigFile)},
        "definitions": definitions.made,
    }


class _Definitions:
    """Schemas of types, of which those of parts and dataclasses are made once and referred to."""

    def __init__(self) -> None:
        self.made: dict[str, Schema] = {}

    def once(self, name: str, make: Callable[[], Schema]) -> Schema:
        name = name.replace(" ", "_")
        if name not in self.made:
            self.made[name] = {}  # it may refer to itself
            self.made[name] = make()
        return {"$ref": f"#/definitions/{name}"}

    def mapping(self, config: type, **more: Schema) -> Schema:
        """Of a dataclass, and keys beside its own."""
        hints = typing.get_type_hints(config)
        keys = {f.name: {**self.value(hints[f.name], f.metadata), "description": meaning(f.metadata), **_default(f)}
                for f in dataclasses.fields(config) if f.init}  # fmt: skip
        return {**_or_reference("object"), "properties": {**more, **keys}, "additionalProperties": False}

    def value(self, hint: Any, metadata: Mapping[str, Any]) -> Schema:
        """What `schema.Binder.value` takes."""
        if hint is type(None):
            return {"type": "null"}
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            return _either([self.value(one, metadata) for one in args])
        if origin is dict or hint is dict:
            inner = self.value(args[1], metadata) if args else {}
            return {**_or_reference("object"), "additionalProperties": inner}
        if origin in (list, tuple) or hint is list:
            return {**_or_reference("array"), "items": self.value(args[0], metadata) if args else {}}
        if metadata.get("registry") is not None:
            return self.component(metadata["registry"])
        if dataclasses.is_dataclass(hint):
            return self.once(hint.__name__, lambda: self.mapping(hint))
        return _leaf(hint, metadata)

    def component(self, registry: Registry) -> Schema:
        """``{name: ..., ...its keys}``; where the base says the name, keys of any part."""

        def make() -> Schema:
            tag = registry.tag
            parts = {}
            for name in registry:
                entry, more = registry.get(name), {tag: {}}
                if entry.variants:
                    declared = compat_key(entry)
                    more[COMPAT] = {**_leaf(str, declared), "description": declared["help"], "default": DEFAULT}
                config = entry.config or _NoKeys
                parts[name] = self.once(f"{registry.kind}.{name}", lambda c=config, m=more: self.mapping(c, **m))
            chosen = [{"if": _has(tag, {"const": name}), "then": part} for name, part in parts.items()]
            unnamed = {"if": {"type": "object", "not": {"required": [tag]}}, "then": {"anyOf": [*parts.values()]}}
            text = f"a {registry.kind}, registered here or by `plugins:`"
            name = {"anyOf": [{"enum": list(parts)}, {"type": "string"}], "description": text}
            kinds = ["object", "string", "null"]  # the string is a bare name, or a reference
            return {"type": kinds, "properties": {tag: name}, "allOf": [*chosen, unnamed]}

        return self.once(registry.kind, make)

    def names(self, hint: Any, metadata: Mapping[str, Any]) -> Schema:
        """That the parts in a value are registered ones; {} where there are none."""
        args, registry = typing.get_args(hint), metadata.get("registry")
        if args:
            held = args[1:] if typing.get_origin(hint) is dict else args
            inner = next(filter(None, (self.names(one, metadata) for one in reversed(held))), {})
            where = {dict: "additionalProperties", list: "items", tuple: "items"}.get(typing.get_origin(hint))
            return {where: inner} if where and inner else inner
        if registry is None:
            inner = self.names_in(hint) if dataclasses.is_dataclass(hint) else {}
            return {"properties": inner} if inner else {}
        known = {"if": {"type": "string"}, "then": {"anyOf": [{"enum": list(registry)}, REFERENCE]}}

        def make() -> Schema:
            inner = {registry.tag: known}
            for config in filter(None, (registry.get(name).config for name in registry)):
                inner |= self.names_in(config)
            return {**known, "properties": inner}

        return self.once(f"{registry.kind}.names", make)

    def names_in(self, config: type) -> dict[str, Schema]:
        hints = typing.get_type_hints(config)
        found = {f.name: self.names(hints[f.name], f.metadata) for f in dataclasses.fields(config)}
        return {name: names for name, names in found.items() if names}


@dataclasses.dataclass
class _NoKeys:
    pass


def _or_reference(kind: str) -> Schema:
    """A mapping or list, a reference to one, or the null that takes one of the base away."""
    return {**REFERENCE, "type": [kind, "string", "null"]}


def _has(key: str, value: Schema) -> Schema:
    return {"type": "object", "properties": {key: value}, "required": [key]}


def _either(options: list[Schema]) -> Schema:
    one, null = options[0], {"type": "null"}
    if len(options) == 2 and options[1] == null and "type" in one:
        kinds = one["type"] if isinstance(one["type"], list) else [one["type"]]
        return {**one, "type": list(dict.fromkeys([*kinds, "null"]))}
    flat = [inner for option in options for inner in option.get("anyOf", [option])]
    return {"anyOf": [one for place, one in enumerate(flat) if one not in flat[:place]]}


def _leaf(hint: Any, metadata: Mapping[str, Any]) -> Schema:
    if metadata.get("choices"):
        return {"anyOf": [{"enum": list(metadata["choices"])}, REFERENCE]}
    if hint in TYPES:
        bounds = {"minimum": metadata.get("low"), "maximum": metadata.get("high")}
        bounds = {name: bound for name, bound in bounds.items() if bound is not None and hint is not bool}
        message = f"expected {TYPES[hint]}, or a ${{...}}"  # what yaml-language-server then says
        return {**REFERENCE, "patternErrorMessage": message, "type": [TYPES[hint], "string"], **bounds}
    return {"type": "string"} if hint is str else {}


def _default(f: dataclasses.Field) -> Schema:
    if f.default is not dataclasses.MISSING:
        return {"default": f.default}
    if "default" in f.metadata:
        return {"default": f.metadata["default"]}
    value = f.default_factory() if f.default_factory is not dataclasses.MISSING else None
    return {"default": value} if isinstance(value, (list, dict)) else {}
