"""Configurations are written beside checkpoints and shared with them: what must not be in one."""

from __future__ import annotations

import re
from typing import Any

_NAMES = re.compile(
    r"(^|_)(api_?key|access_?key|auth_?token|access_?token|hf_?token|wandb_?(api_?)?key|secret|password|passwd)$|^token$",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"://[^/\s:@]+:[^/\s@]+@|authorization:\s*(bearer|basic)\s", re.IGNORECASE)


def secrets_in(tree: Any, at: str = "") -> list[tuple[str, str]]:
    """Key and remedy for every key that is named like a secret and every value that holds a password."""
    if isinstance(tree, dict):
        found = []
        for name, inner in tree.items():
            here = f"{at}.{name}" if at else str(name)
            if _NAMES.search(str(name)) and isinstance(inner, (str, int)):
                found.append((here, _REMEDY))
            found += secrets_in(inner, here)
        return found
    if isinstance(tree, (list, tuple)):
        return [one for number, inner in enumerate(tree) for one in secrets_in(inner, f"{at}[{number}]")]
    if isinstance(tree, str) and _IN_URL.search(tree):
        return [(at, f"holds a password; {_REMEDY}")]
    return []


_REMEDY = (
    "secrets do not belong into a configuration, which is kept beside checkpoints; set WANDB_API_KEY (or the like) in "
    "the environment, passwords of URLs in ~/.netrc"
)
