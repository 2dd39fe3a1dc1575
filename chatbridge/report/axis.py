"""Axes: what range a curve needs, and at which round numbers to label it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

WIDE = 25.0
"""Highest over lowest value from which on a logarithmic axis shows more than a linear one."""


@dataclass(frozen=True)
class Axis:
    """A range of values and its labelled ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, values: np.ndarray) -> np.ndarray:
        """Where values lie, 0 at the low end and 1 at the high one."""
        if self.log:
            low, high = math.log10(self.low), math.log10(self.high)
            with np.errstate(invalid="ignore", divide="ignore"):
                return (np.log10(values) - low) / (high - low)
        return (values - self.low) / (self.high - self.low)


def can_be_log(values: np.ndarray) -> bool:
    return len(values) > 0 and float(values.min()) > 0


def is_wide(values: np.ndarray) -> bool:
    return can_be_log(values) and float(values.max()) > WIDE * float(values.min())


def linear_axis(values: np.ndarray, zero: bool = False, count: int = 5) -> Axis:
    """Round ends around finite values; from zero on if asked."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    step = round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{i * step:.12g}") for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def log_axis(values: np.ndarray) -> Axis:
    """Ends at 1, 2 or 5 times a power of ten around positive values."""
    low, high = float(values.min()), float(values.max())
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    grid = [float(f"{m}e{p}") for p in powers for m in (1, 2, 5)]
    first = max((i for i, g in enumerate(grid) if g <= low), default=0)
    last = min((i for i, g in enumerate(grid) if g >= high), default=len(grid) - 1)
    last = max(last, first + 1)
    inside = grid[first : last + 1]
    decades = [g for g in inside if f"{g:e}".startswith("1.0")]
    if len(decades) >= 3:
        ticks = decades[:: -(-len(decades) // 6)]
    else:
        ticks = inside
    return Axis(grid[first], grid[last], tuple(ticks), log=True)


def step_axis(first: int, last: int, count: int = 6) -> Axis:
    """Steps of the run from left to right; the ends are not rounded."""
    last = max(last, first + 1)
    step = max(1, round_step((last - first) / count))
    ticks = tuple(i * step for i in range(math.ceil(first / step), math.floor(last / step) + 1))
    return Axis(float(first), float(last), ticks)


def round_step(rough: float) -> float:
    """The next 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next((m * power for m in (1, 2, 2.5, 5) if m * power >= rough * (1 - 1e-9)), 10 * power)
