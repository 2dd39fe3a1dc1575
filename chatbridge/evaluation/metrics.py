"""Exact match, and how sure a share of hits is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

_EDGES = " \t\n.,;:!?\"'"
_SPACES = re.compile(r"\s+")
_ARTICLES = re.compile(r"\b(?:an?|the)\b")


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation at either end, no articles: what exact match compares."""
    plain = _ARTICLES.sub(" ", text.lower())
    return _SPACES.sub(" ", plain).strip(_EDGES)


def verdict(text: str) -> str:
    """What an answer that reasons ends in: the words behind its last "so", normalised; any other answer whole.

    "red vs blue differ, so no" is judged by its "no": a right verdict is asked for, not one way to it.
    """
    return normalise(re.split(r"\bso\b", text)[-1])


def exact_match(prediction: str, references: Sequence[str], reading: Callable[[str], str] = normalise) -> bool:
    """Whether the prediction reads like one of the acceptable answers.

    Args:
        reading: `normalise` for captions, `verdict` for answers that may reason first.

    Raises:
        ValueError: when there is no reference to compare with.
    """
    if not references:
        raise ValueError(f"prediction '{prediction}' has no reference answer to compare with")
    return any(reading(prediction) == reading(reference) for reference in references)


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Confidence interval of a share (Wilson 1927), 95 % by default; (0, 1) when nothing was counted.

    Unlike the normal approximation it stays inside 0..1 and has a width when all or none are hits.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} hits out of {n} is impossible")
    if n == 0:
        return 0.0, 1.0
    share, spread = hits / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Score:
    """A share of hits.

    Attributes:
        n: answers counted; value: the share that was right; ci95: its Wilson interval.
    """

    n: int
    value: float
    ci95: tuple[float, float]

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> Score:
        """The score of answers, each right or wrong."""
        results = list(outcomes)
        hits = sum(results)
        low, high = wilson(hits, len(results))
        return cls(len(results), hits / len(results) if results else 0.0, (low, high))

    def as_dict(self) -> dict:
        """For JSON."""
        return {**asdict(self), "ci95": list(self.ci95)}
