"""Numbers and times as people read them."""

from __future__ import annotations

import math
from datetime import datetime


def duration(seconds: float) -> str:
    """Two units at most, for people."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes:.0f} min"
    if hours < 48:
        return f"{int(hours)} h {int(minutes) % 60} min"
    return f"{int(hours) // 24} d {int(hours) % 24} h"


def rounded(value: float | None) -> str:
    """Four significant digits or so; whole numbers in full."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) >= 1e15:
        return f"{value:.3e}"
    if value == int(value) or abs(value) >= 1e4:
        return f"{value:,.0f}"
    if abs(value) >= 1e3:
        return f"{value:,.1f}"
    if abs(value) < 1e-4:
        digits, power = f"{value:.3e}".split("e")
        return f"{digits}e{int(power)}"
    return f"{value:#.4g}"


def percent(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return rounded(value)
    return f"{value:.1%}"


def short(value: float) -> str:
    """For an axis: 1.5k, 2M, 0.02, 1e-5."""
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:g}{letter}"
    if 0 < abs(value) < 1e-3:
        digits, power = f"{value:.3e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:g}"


def count(number: int, one: str) -> str:
    """A number of things, in the plural where it is one."""
    return f"{number:,} {one}" + ("" if number == 1 else "s")


def steps(numbers: list[int], most: int = 12) -> str:
    """Step numbers as a list that ends in time."""
    text = ", ".join(f"{n:,}" for n in numbers[:most])
    return text + (f" and {len(numbers) - most:,} more" if len(numbers) > most else "")


def clock(time: datetime | None) -> str:
    return "–" if time is None else time.strftime("%Y-%m-%d %H:%M:%S UTC")
