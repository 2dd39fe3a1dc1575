"""A quantity over the steps of a run: kept whole, drawn thinned, so that no peak is lost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RECENT = 20
"""Logged values that a mean "of the last" takes."""

LARGE, SMALL = 1e100, 1e-100
"""Values beyond count as infinite, or as zero: sums and axes of the rest stay within what numbers can hold."""


class Series:
    """Values at increasing steps. A step that comes again replaces itself and all later ones: the run went back."""

    def __init__(self) -> None:
        self._steps = np.empty(64, np.int64)
        self._values = np.empty(64)
        self._count = 0
        self._newest = -1
        self._summary: Summary | None = None

    def __len__(self) -> int:
        return self._count

    def add(self, step: int, value: float) -> None:
        if step <= self._newest:
            self.cut(step)
        count = self._count
        if count == len(self._steps):
            self._steps, self._values = np.resize(self._steps, 2 * count), np.resize(self._values, 2 * count)
        self._steps[count] = self._newest = step
        self._values[count] = value if LARGE >= abs(value) >= SMALL else 0.0 if abs(value) < 1 else value * math.inf
        self._count = count + 1
        self._summary = None

    def cut(self, step: int) -> None:
        """Forget this step and what follows."""
        self._count = int(np.searchsorted(self.steps, step))
        self._newest = int(self.steps[-1]) if self._count else -1
        self._summary = None

    def nonzero(self) -> Series:
        """Without the steps at which it was zero; itself where it never was anything else."""
        kept = np.flatnonzero(self.values)
        if len(kept) in (0, len(self)):
            return self
        found = Series()
        found._steps, found._values, found._count = self.steps[kept], self.values[kept], len(kept)
        found._newest = int(found._steps[-1])
        return found

    @property
    def steps(self) -> np.ndarray:
        """Increasing steps, [n] integers."""
        return self._steps[: self._count]

    @property
    def values(self) -> np.ndarray:
        """Their values, [n] floats; NaN or infinite where they were logged so."""
        return self._values[: self._count]

    @property
    def last(self) -> float | None:
        return float(self._values[self._count - 1]) if self._count else None

    def recent(self) -> float | None:
        """Mean of the last `RECENT` values that are finite."""
        return mean(self.values[-RECENT:])

    def summary(self) -> Summary:
        if self._summary is None:
            self._summary = Summary.of(self.steps, self.values)
        return self._summary


@dataclass(frozen=True)
class Summary:
    """What a table says of a series.

    Attributes:
        lowest, highest: (step, value) among finite values.
        broken: steps whose value is NaN or infinite.
    """

    count: int
    last: float | None
    recent: float | None
    lowest: tuple[int, float] | None
    highest: tuple[int, float] | None
    median: float | None
    broken: tuple[int, ...]

    @classmethod
    def of(cls, steps: np.ndarray, values: np.ndarray) -> Summary:
        good = np.isfinite(values)
        broken = tuple(steps[~good].tolist())
        last = float(values[-1]) if len(values) else None
        if not good.any():
            return cls(len(values), last, None, None, None, None, broken)
        s, v = steps[good], values[good]
        low, high = int(v.argmin()), int(v.argmax())
        return cls(
            len(values), last, mean(values[-RECENT:]), (int(s[low]), float(v[low])), (int(s[high]), float(v[high])),
            float(np.median(v)), broken,
        )  # fmt: skip


def mean(values: np.ndarray) -> float | None:
    """Of the finite values; None when there is none."""
    good = values[np.isfinite(values)]
    return float(good.mean()) if len(good) else None


def window(count: int) -> int:
    """Odd length of the running mean for a curve of `count` values: a fiftieth of it, and three at least."""
    return max(3, count // 50) | 1


def smooth(values: np.ndarray, width: int, at: np.ndarray) -> np.ndarray:
    """Running mean over `width` values around each of the indices `at` [m], over finite values.

    NaN where the value itself is not finite. Near the start the window shrinks on both sides, so that the steep
    beginning of a loss is not flattened.
    """
    good = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(values if good.all() else np.where(good, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(good)])
    half = np.minimum(width // 2, at)
    first, end = at - half, np.minimum(at + half + 1, len(values))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (total[end] - total[first]) / (count[end] - count[first])
    return np.where(good[at], means, np.nan)


def thin(steps: np.ndarray, values: np.ndarray, buckets: int = 500) -> np.ndarray:
    """Indices [m] of the points to draw: lowest, highest and one gap of each bucket of steps, and both ends.

    All of them where there are no more than twice as many points as buckets.
    """
    n = len(steps)
    if n <= 2 * buckets:
        return np.arange(n)
    good = np.isfinite(values)
    whole = bool(good.all())
    low, high = (values, values) if whole else (np.where(good, values, np.inf), np.where(good, values, -np.inf))
    starts = np.searchsorted(steps, np.linspace(steps[0], steps[-1] + 1, buckets + 1)).tolist()
    chosen = [0, n - 1]
    for a, b in zip(starts[:-1], starts[1:], strict=True):
        if a == b:
            continue
        chosen += [a + int(low[a:b].argmin()), a + int(high[a:b].argmax())]
        if not whole and not good[a:b].all():
            chosen.append(a + int(good[a:b].argmin()))
    return np.unique(chosen)
