"""Waiting for something that must happen: guards against hanging, never measures of speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 600.0
"""Seconds. Machines may be thirty times slower than the one a test was written on."""


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Wait for something to become true; returns it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
    return found
