"""The account of what could not be read: nothing is replaced without an entry here."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class LedgerEntry:
    """One medium that could not be read, and the sample that took its place."""

    dataset: str
    sample_id: str
    file: str
    reason: str
    replaced_by: str


class TooManyBadSamples(ValueError):
    """More samples had to be replaced than the configuration allows."""


class Ledger:
    """Counts samples and replacements, writes the entries, and says when it is too much.

    Args:
        file: JSON lines, appended to; None keeps the entries in memory only.
        max_share: replaced samples over all samples of a dataset, above which `add` raises.
        grace: samples of a dataset that must have been seen before the share is judged.
    """

    def __init__(self, file: Path | None, max_share: float, grace: int = 50):
        self.file = file
        self.max_share = max_share
        self.grace = grace
        self.seen: Counter[str] = Counter()
        self.replaced: Counter[str] = Counter()

    def add(self, dataset: str, samples: int, entries: list[LedgerEntry]) -> None:
        """Count a batch. Raises TooManyBadSamples when the dataset's share is past the limit."""
        self.seen[dataset] += samples
        self.replaced[dataset] += len(entries)
        if entries and self.file is not None:
            with self.file.open("a", encoding="utf-8") as out:
                out.writelines(json.dumps(asdict(e), ensure_ascii=False) + "\n" for e in entries)
        share = self.replaced[dataset] / max(self.seen[dataset], 1)
        if entries and self.seen[dataset] >= self.grace and share > self.max_share:
            last = entries[-1]
            raise TooManyBadSamples(
                f"dataset '{dataset}': {self.replaced[dataset]} of {self.seen[dataset]} samples could not be read "
                f"({share:.1%}; run.max_bad_share allows {self.max_share:.1%}); the last was {last.file}: {last.reason}"
                + (f"; all of them are in {self.file}" if self.file else "")
            )

    def state_dict(self) -> dict[str, dict[str, int]]:
        return {"seen": dict(self.seen), "replaced": dict(self.replaced)}

    def load_state_dict(self, state: dict[str, dict[str, int]]) -> None:
        self.seen, self.replaced = Counter(state["seen"]), Counter(state["replaced"])
