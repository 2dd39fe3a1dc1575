"""From the answers of a set to its scores, by condition and group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatbridge.common.registry import METRICS
from chatbridge.contracts import Metric
from chatbridge.evaluation.metrics import ExactMatch, Prediction, Score


@dataclass(frozen=True)
class Scores:
    """Of one group of a set under one condition.

    Attributes:
        values: by name, those of the first metric first.
        failed: questions that no answer was got to. They are in none of the values.
    """

    values: Mapping[str, Score]
    failed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For scores.json: the first value with its name under "metric", the others by theirs; failures, if any."""
        (name, first), *others = self.values.items()
        failed = {"failed": self.failed} if self.failed else {}
        return {"metric": name, **first.as_dict(), **failed, **{name: score.as_dict() for name, score in others}}


def build_metrics(configs: Sequence[Any] | None) -> list[Metric]:
    """What a set's ``metrics`` name; exact match for none. Raises ValueError for one that cannot be."""
    return [METRICS.build(config) for config in configs or [ExactMatch]]


def score(
    rows: Iterable[Mapping[str, Any]], metrics: Sequence[Metric], verdict_after: str | None = None
) -> dict[str, dict[str, Scores]]:
    """condition -> group ("" for all) -> scores; places of which nothing is known are left out.

    Args:
        rows: a set's predictions with "condition", "group", "question", "references", "prediction" or "error".
        verdict_after: as in `Prediction.of`.
    """
    places: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        for group in {"", row["group"]}:
            places.setdefault((row["condition"], group), []).append(row)
    found: dict[str, dict[str, Scores]] = {}
    for (condition, group), there in sorted(places.items()):
        answers = [Prediction.of(row, verdict_after) for row in there if "error" not in row]
        values = {name: value for metric in metrics for name, value in metric(answers).items()}
        scores = Scores(values, len(there) - len(answers))
        if scores.failed or any(value.n for value in values.values()):
            found.setdefault(condition, {})[group] = scores
    return found
