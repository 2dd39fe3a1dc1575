"""From answers to scores: by dataset, condition and group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chatbridge.evaluation.metrics import Score, exact_match

Scores = dict[str, dict[str, dict[str, Score]]]
"""dataset -> condition -> group ("" for all) -> score."""


def is_correct(prediction: str, references: Sequence[str], verdict_after: str | None = None) -> bool | None:
    """Exact match after normalisation, or None when there is nothing to compare with.

    Args:
        verdict_after: where answers reason first, only what follows the last occurrence of this is compared.
    """
    if not references:
        return None
    if verdict_after is not None:
        prediction, *references = (text.rpartition(verdict_after)[2] for text in (prediction, *references))
    return exact_match(prediction, references)


def score(rows: Iterable[Mapping[str, Any]]) -> Scores:
    """Share of correct answers with its 95 % interval, of every group of every dataset under every condition.

    Args:
        rows: predictions with "dataset", "condition", "group" and "correct". Those without a verdict are left out, be
            it for lack of a reference or of an answer: those with an "error" are counted in `Score.failed`.
    """
    hits: dict[tuple[str, str, str], list[bool]] = {}
    failed: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        for group in {"", row["group"]}:
            place = row["dataset"], row["condition"], group
            if row["correct"] is not None:
                hits.setdefault(place, []).append(row["correct"])
            elif "error" in row:
                failed[place] += 1
    scores: Scores = {}
    for place in sorted({*hits, *failed}):
        dataset, condition, group = place
        scores.setdefault(dataset, {}).setdefault(condition, {})[group] = Score.of(hits.get(place, ()), failed[place])
    return scores
