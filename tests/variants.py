"""Registered parts in both modes: as the package does things (``default``) and as the published code did."""

from __future__ import annotations

from typing import Any

from chatbridge import register_all
from chatbridge.common.registry import Registry

MODES = ("default", "original")


def configured(registry: Registry, name: str, compat: str = "default", **keys: Any) -> Any:
    """The configuration of a registered part."""
    register_all()
    entry = registry.get(name)
    return (entry if compat == "default" else entry.variants[compat]).config(**keys)


def built(registry: Registry, name: str, compat: str = "default", **keys: Any) -> Any:
    return registry.build(configured(registry, name, compat, **keys))
