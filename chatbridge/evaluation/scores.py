"""From answers to scores: by dataset, condition and group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chatbridge.evaluation.metrics import Score, exact_match, normalise

Scores = dict[str, dict[str, dict[str, Score]]]
"""dataset -> condition -> group ("" for all) -> score."""


def is_correct(prediction: str, references: Sequence[str], verdict_after: str | None = None) -> bool | None:
    """Exact match after normalisation, or None when there is nothing to compare with.

    Args:
        verdict_after: where answers reason first, only what follows the last occurrence of this is compared.
    """
    if not references:
        return None

    def reading(text: str) -> str:
        return normalise(text if verdict_after is None else text.rpartition(verdict_after)[2])

    return exact_match(prediction, references, reading)


def score(rows: Iterable[Mapping[str, Any]]) -> Scores:
    """Share of correct answers with its 95 % interval, of every group of every dataset under every condition.

    Args:
        rows: predictions with "dataset", "condition", "group" and "correct"; those without a verdict are left out.
    """
    hits: dict[tuple[str, str, str], list[bool]] = {}
    for row in rows:
        if row["correct"] is not None:
            for group in {"", row["group"]}:
                hits.setdefault((row["dataset"], row["condition"], group), []).append(row["correct"])
    scores: Scores = {}
    for (dataset, condition, group), values in sorted(hits.items()):
        scores.setdefault(dataset, {}).setdefault(condition, {})[group] = Score.of(values)
    return scores
