"""Parts of the user's own: Python files or modules that a configuration names, imported once each."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from chatbridge.common.schema import ConfigError


def import_plugins(names: Sequence[str], folder: Path, source: str) -> None:
    """Import files ("thermal.py", relative to the YAML's folder) or modules ("my_lab.thermal").

    A file is imported under its own name with its folder at the end of ``sys.path``, so that data-loader workers
    started by *spawn* find it again.

    Raises:
        ConfigError: a name that is not there, or whatever the code raised, in one line with file and place.
    """
    for name in names:
        where = f"{source}: plugins: '{name}'"
        if not name.endswith(".py"):
            _import(name, where)
            continue
        file = folder / name
        if not os.path.isfile(file):
            raise ConfigError([f"{where} does not exist; looked for {file}"])
        _import_file(file.resolve(), where)


def _import_file(file: Path, where: str) -> None:
    name = file.stem
    if not name.isidentifier():
        raise ConfigError([f"{where}: a module cannot be called '{name}'; rename {file.name} to letters, digits and _"])
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
        importlib.invalidate_caches()
    found = _place_of(name)
    if found != file:
        place = f" ({found})" if found else ""
        raise ConfigError([f"{where}: a module called '{name}' exists already{place}; rename {file.name}"])
    _import(name, where)


def _place_of(name: str) -> Path | None:
    """The file that ``import name`` gives; None for what has none, such as built-in modules."""
    loaded = sys.modules.get(name)
    origin = loaded.__dict__.get("__file__") if loaded else getattr(importlib.util.find_spec(name), "origin", None)
    return Path(origin).resolve() if origin and os.path.exists(origin) else None


def _import(name: str, where: str) -> None:
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:  # it is the user's code: anything may come out of it
        raise ConfigError([f"{where} cannot be imported: {_reason(error)}"]) from error


def _reason(error: BaseException) -> str:
    """Class and text of an exception, and the last line of the user's code that it came through."""
    text = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError):
        return reason  # it names file and line itself
    others = ("<frozen importlib", os.path.dirname(importlib.__file__), str(Path(__file__).parent.parent))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(others)]
    return f"{reason} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else reason
