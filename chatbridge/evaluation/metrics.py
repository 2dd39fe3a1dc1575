"""Exact match, and how sure a share of hits is."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

_EDGES = " \t\n.,;:!?\"'"
_SPACES = re.compile(r"\s+")
_ARTICLES = re.compile(
    r"\b(?:an|the)\s+(?=[\"'(]*\w)"  # in front of a word
    r"|\ba\s+(?=[\"'(]*\w)(?!(?:[a-z]|and|or)(?![\w'-]))"  # that is no letter: "A B", "A and C" are answers, too
)
"""What are articles. "A" and "vitamin A" end in none."""


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation at either end, no articles: what exact match compares.

    As VQA's evaluation does, but for articles, which it drops wherever they stand. What is nothing but punctuation
    stays as it is.
    """
    plain = _SPACES.sub(" ", text.lower()).strip()
    return _ARTICLES.sub("", plain).strip(_EDGES) or plain


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Whether the prediction reads like one of the acceptable answers, normalised. No answer at all never does.

    Raises:
        ValueError: when there is no reference to compare with.
    """
    if not references:
        raise ValueError(f"prediction '{prediction}' has no reference answer to compare with")
    said = normalise(prediction)
    return bool(said) and any(said == normalise(reference) for reference in references)


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
        failed: questions that no answer was got to. They are in none of the others.
    """

    n: int
    value: float
    ci95: tuple[float, float]
    failed: int = 0

    @classmethod
    def of(cls, outcomes: Iterable[bool], failed: int = 0) -> Score:
        """The score of answers, each right or wrong."""
        results = list(outcomes)
        hits = sum(results)
        low, high = wilson(hits, len(results))
        return cls(len(results), hits / len(results) if results else 0.0, (low, high), failed)

    def as_dict(self) -> dict:
        """For JSON. What failed is told where something did, and a share of nothing is null."""
        plain = {**asdict(self), "ci95": list(self.ci95), "value": self.value if self.n else None}
        return plain if self.failed else {name: value for name, value in plain.items() if name != "failed"}
