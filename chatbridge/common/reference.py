"""The configuration reference, written from the declared keys: ``python -m chatbridge.common.reference docs``."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatbridge.common.config import ConfigFile
from chatbridge.common.registry import COMPAT, DEFAULT, registries
from chatbridge.common.schema import compat_key

HEAD = """\
# Configuration reference

Written from the declared keys by `python -m chatbridge.common.reference docs`, like `configuration.schema.json`; a test
holds both up to date. Any key can be overridden: `train.py --cfg-path CFG --options run.init_lr=5e-5`. Relative paths
start in the folder of the file they stand in, or in the working folder. `--check` shows a file and its `base` as one.
A run may go on with another value of what is *free on resume*.

Editors with yaml-language-server (VS Code: the extension redhat.vscode-yaml) complete and check a YAML that has a line
`# yaml-language-server: $schema=../docs/configuration.schema.json`. One with `plugins:` may name parts of any name.
"""


def reference() -> str:
    """Markdown tables of every key of every registered part. Call `chatbridge.register_all` first."""
    parts = [
        HEAD,
        "## The file\n",
        *_table(ConfigFile),
    ]
    seen: set[type] = {ConfigFile}
    parts += _nested(ConfigFile, seen)
    for registry in registries():
        for name in registry:
            entry = registry.get(name)
            if entry.config is not None:
                rows = _table(entry.config)
                if entry.variants:
                    rows.insert(-1, f"| `{COMPAT}` | str | `{DEFAULT!r}` | {_cell(compat_key(entry))} |")
                parts += [f"## {registry.kind}: `{name}`\n", *rows]
                parts += _nested(entry.config, seen)
    return "\n".join(parts)


def _nested(config: type, seen: set[type]) -> Iterator[str]:
    for _, hint in _hints(config):
        for inner in _dataclasses_in(hint):
            if inner not in seen:
                seen.add(inner)
                yield f"### `{inner.__name__}`\n"
                yield from _table(inner)
                yield from _nested(inner, seen)


def _table(config: type) -> list[str]:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    hints = dict(_hints(config))
    for f in dataclasses.fields(config):
        if f.init:
            rows.append(f"| `{f.name}` | {_type(hints[f.name], f.metadata)} | {_default(f)} | {_cell(f.metadata)} |")
    return [*rows, ""]


def _hints(config: type) -> list[tuple[str, Any]]:
    return list(typing.get_type_hints(config).items())


def _dataclasses_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for inner in typing.get_args(hint):
        yield from _dataclasses_in(inner)


def _type(hint: Any, metadata: Any) -> str:
    if metadata.get("registry") is not None:
        what = f"{metadata['registry'].kind}, named by `{metadata['registry'].tag}`"
        kinds = {typing.get_origin(inner) for inner in (hint, *typing.get_args(hint))}
        return f"mapping of names to {what}" if dict in kinds else f"list of {what}" if list in kinds else what
    if metadata.get("path"):
        return "path" if not typing.get_args(hint) else _name(hint).replace("str", "path")
    return _name(hint)


def _name(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_name(a) for a in args)
    if origin is not None:
        return f"{origin.__name__} of {' to '.join(_name(a) for a in args)}"
    return {type(None): "null"}.get(hint, getattr(hint, "__name__", "any"))


def _default(f: dataclasses.Field) -> str:
    if "default" in f.metadata:
        return f"`{f.metadata['default']!r}`"
    if f.default is not dataclasses.MISSING:
        return "null" if f.default is None else f"`{f.default!r}`"
    if f.default_factory is not dataclasses.MISSING:
        value = f.default_factory()
        return "its own defaults" if dataclasses.is_dataclass(value) else f"`{value!r}`"
    registry = f.metadata.get("registry")
    return f"`{registry.usual}`" if registry is not None and registry.usual else "**required**"


def meaning(metadata: Any) -> str:
    """What a key does, in one line."""
    text = metadata.get("help", "")
    if metadata.get("unit"):
        text += f" [{metadata['unit']}]"
    return text + "; free on resume" if metadata.get("resume") == "free" else text


def _cell(metadata: Any) -> str:
    text = meaning(metadata)
    if metadata.get("choices"):
        text += "; one of " + ", ".join(f"`{c}`" for c in metadata["choices"])
    if metadata.get("registry"):
        text += "; built in: " + ", ".join(f"`{name}`" for name in metadata["registry"])
    low, high = metadata.get("low"), metadata.get("high")
    if low is not None or high is not None:
        text += f" ({'' if low is None else f'{low} '}≤ value{'' if high is None else f' ≤ {high}'})"
    return text.replace("|", "\\|").replace("\n", "\\n")


if __name__ == "__main__":
    from chatbridge import register_all
    from chatbridge.common.json_schema import json_schema

    register_all()
    folder = Path(sys.argv[1])
    (folder / "configuration.md").write_text(reference(), encoding="utf-8")
    text = json.dumps(json_schema(), indent=1, ensure_ascii=False)
    text = re.sub(
        r"\[\n([^][{}]+)\n\s*\]", lambda found: "[" + re.sub(r"\s*\n\s*", " ", found[1]).strip() + "]", text
    )  # short lists
    (folder / "configuration.schema.json").write_text(text + "\n", encoding="utf-8")
