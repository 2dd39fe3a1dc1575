"""The account of what could not be read: nothing is replaced without an entry here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chatbridge.common.documents import json_line


@dataclass(frozen=True)
class LedgerEntry:
    """One thing that could not be read, and the sample that took its place.

    Attributes:
        count: samples that it cost: 1 for a medium, the rest of a shard that ends too early, 0 for what worked when
            it was tried again.
    """

    dataset: str
    sample_id: str
    file: str
    reason: str
    replaced_by: str = ""
    count: int = 1


class TooManyBadSamples(ValueError):
    """More samples had to be replaced than the configuration allows."""


class Ledger:
    """Counts samples and replacements, writes the entries, and says when it is too much.

    Args:
        file: JSON lines, appended to; None keeps the counts only.
        max_share: the largest share of a dataset that may be unreadable before `add` raises. Single samples are
            compared with those seen so far, a lost part of a shard with the size of the dataset.
        grace: samples of a dataset that must have been seen before the share is judged.
        strict: raise at the first sample that could not be read.
    """

    def __init__(self, file: Path | None, max_share: float, grace: int = 50, strict: bool = False):
        self.file = file
        self.max_share = max_share
        self.grace = grace
        self.strict = strict
        self.sizes: dict[str, int] = {}
        self.seen: Counter[str] = Counter()
        self.replaced: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()

    def add(self, sources: Iterable[str], entries: Sequence[LedgerEntry]) -> None:
        """Count a batch: its samples by the datasets they are from, what was unreadable by the entries' own.

        Args:
            sources: the dataset of every sample, `MultimodalBatch.sources`.

        Raises:
            TooManyBadSamples: a dataset's share is past the limit. All of the batch was counted and written before.
        """
        self.seen.update(sources)
        if not entries:
            return
        bad: dict[str, list[LedgerEntry]] = {}
        for entry in entries:
            if entry.count:
                bad.setdefault(entry.dataset, []).append(entry)
            counts = self.retried if not entry.count else self.replaced if entry.count == 1 else self.lost
            counts[entry.dataset] += max(1, entry.count)
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8", errors="backslashreplace") as out:
                out.writelines(json_line(asdict(entry)) for entry in entries)
        for dataset, own in bad.items():
            self._judge(dataset, own)

    def _judge(self, dataset: str, bad: list[LedgerEntry]) -> None:
        seen, count = self.seen[dataset], self.replaced[dataset] + self.lost[dataset]
        if self.strict:
            first = bad[0]
            raise TooManyBadSamples(
                f"dataset '{dataset}': strict reading stops at the first sample that cannot be read: "
                f"{first.file}: {first.reason} (sample {first.sample_id}); repair or remove it, or read without strict"
            )
        size = max(self.sizes.get(dataset, 0), seen + self.lost[dataset], 1)
        share = self.replaced[dataset] / max(seen, 1) + self.lost[dataset] / size
        if seen >= self.grace and share > self.max_share:
            last = bad[-1]
            raise TooManyBadSamples(
                f"dataset '{dataset}': {count} of {max(seen, count)} samples could not be read "
                f"({share:.1%}; run.max_bad_share allows {self.max_share:.1%}); the last was {last.file}: {last.reason}"
                + (f"; all of them are in {self.file}" if self.file else "")
            )

    def state_dict(self) -> dict[str, Any]:
        """The counts, and how much of the file they account for."""
        size = self.file.stat().st_size if self.file is not None and self.file.exists() else 0
        return {**{name: dict(getattr(self, name)) for name in _COUNTS}, "bytes": size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; what the file says of later steps, which will be read again, is cut off."""
        for name in _COUNTS:
            setattr(self, name, Counter(state.get(name, {})))
        if self.file is not None and self.file.exists() and "bytes" in state:
            with self.file.open("r+b") as out:
                out.truncate(min(state["bytes"], self.file.stat().st_size))


_COUNTS = ("seen", "replaced", "lost", "retried")


def join_counts(states: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """The counts of several ledgers, one per rank, together."""
    states = list(states)
    return {name: dict(sum((Counter(s.get(name, {})) for s in states), Counter())) for name in _COUNTS}
