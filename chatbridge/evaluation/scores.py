"""From answers to scores: by dataset, condition and group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chatbridge.evaluation.metrics import exact_match, proportion

Scores = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""dataset -> condition -> group ("" for all) -> {"n", "value", "ci95"}."""


def is_correct(prediction: str, references: Sequence[str], verdict_after: str | None = None) -> bool:
    """Exact match after normalisation; where answers reason first, of what follows the last `verdict_after`."""
    if verdict_after is not None:
        prediction = prediction.rpartition(verdict_after)[2]
        references = [reference.rpartition(verdict_after)[2] for reference in references]
    return exact_match(prediction, references)


def score(rows: Iterable[Mapping[str, Any]]) -> Scores:
    """Share of correct answers with its 95 % interval, of every group of every dataset under every condition.

    Args:
        rows: predictions with "dataset", "condition", "group" and "correct".
    """
    hits: dict[tuple[str, str, str], list[bool]] = {}
    for row in rows:
        for group in {"", row["group"]}:
            hits.setdefault((row["dataset"], row["condition"], group), []).append(row["correct"])
    scores: Scores = {}
    for (dataset, condition, group), values in sorted(hits.items()):
        scores.setdefault(dataset, {}).setdefault(condition, {})[group] = proportion(sum(values), len(values))
    return scores
