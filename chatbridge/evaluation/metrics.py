"""What answers are scored by (``metrics`` of a set under ``validation:``): exact match, or a metric from outside."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatbridge.common.registry import METRICS

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


def exact_match(prediction: str, references: Sequence[str]) -> bool | None:
    """Whether the prediction reads like one of the acceptable answers, normalised; None where there is none.

    No answer at all never does.
    """
    if not references:
        return None
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
    """A named value of a metric.

    Attributes:
        n: answers that it is of. value: what the metric says; ci95: its 95 % confidence interval, where there is one.
    """

    n: int
    value: float
    ci95: tuple[float, float] | None = None

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> Score:
        """The share of answers that are right, with its Wilson interval."""
        results = list(outcomes)
        hits = sum(results)
        return cls(len(results), hits / len(results) if results else 0.0, wilson(hits, len(results)))

    def as_dict(self) -> dict[str, Any]:
        """For JSON. A value of nothing is null."""
        plain = {"n": self.n, "value": self.value if self.n else None}
        return plain if self.ci95 is None else {**plain, "ci95": list(self.ci95)}


@dataclass(frozen=True)
class Prediction:
    """What a metric sees of an answer.

    Attributes:
        prediction: what was said. references: acceptable answers, maybe none.
        question: as it was asked. group: the label of the entry in the annotations, "" for none.
    """

    prediction: str
    references: tuple[str, ...]
    question: str = ""
    group: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any], verdict_after: str | None = None) -> Prediction:
        """From a row of predictions.jsonl.

        Args:
            verdict_after: where answers reason first, only what follows the last occurrence of this is compared.
        """

        def compared(text: str) -> str:
            return text if verdict_after is None else text.rpartition(verdict_after)[2]

        return cls(compared(row["prediction"]), tuple(map(compared, row["references"])), row["question"], row["group"])


@METRICS.register("exact_match")
class ExactMatch:
    """The share of answers that read like one of their references (`exact_match`)."""

    def __call__(self, answers: Sequence[Prediction]) -> dict[str, Score]:
        verdicts = [exact_match(answer.prediction, answer.references) for answer in answers]
        return {"exact_match": Score.of(verdict for verdict in verdicts if verdict is not None)}
