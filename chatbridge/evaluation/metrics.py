"""Scores of short answers, with honest intervals."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable
from typing import Any

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without punctuation, one space between words."""
    return re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()


def exact_match(prediction: str, references: Iterable[str]) -> bool:
    """Whether the normalised prediction equals one of the normalised references."""
    return normalise(prediction) in {normalise(reference) for reference in references}


def wilson_interval(successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The Wilson score interval of a proportion (Wilson 1927); 95 % by default. With n = 0 it is (0, 1)."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def proportion(successes: int, n: int) -> dict[str, Any]:
    """A measured share: {"n", "value", "ci95"}."""
    low, high = wilson_interval(successes, n)
    return {"n": n, "value": successes / n if n else None, "ci95": [low, high]}
