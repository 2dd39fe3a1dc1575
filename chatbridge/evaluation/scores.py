"""From answers to scores: by dataset, condition and group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from chatbridge.evaluation.metrics import exact_match, proportion

Scores = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""dataset -> condition -> group ("" for all) -> {"n", "value", "ci95"}."""


def score(rows: Iterable[Mapping[str, Any]]) -> Scores:
    """Exact match with its 95 % interval (Wilson), of every group of every dataset under every condition.

    Args:
        rows: predictions with "dataset", "condition", "group", "prediction" and "references".
    """
    hits: dict[tuple[str, str, str], list[bool]] = {}
    for row in rows:
        hit = exact_match(row["prediction"], row["references"])
        for group in {"", row["group"]}:
            hits.setdefault((row["dataset"], row["condition"], group), []).append(hit)
    scores: Scores = {}
    for (dataset, condition, group), values in hits.items():
        scores.setdefault(dataset, {}).setdefault(condition, {})[group] = proportion(sum(values), len(values))
    return scores
