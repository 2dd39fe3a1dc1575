"""How many samples make a batch, and how they share rows: first-fit packing and token budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of sample numbers: each sample goes into the first row that still has room for it.

    Raises:
        ValueError: for a sample longer than a row.
    """
    rows = Rows(capacity)
    for number, length in enumerate(lengths):
        if length > capacity:
            raise ValueError(f"a sample of {length} positions does not fit into a row of {capacity}; raise pack")
        rows.add(number, length)
    return rows.rows


@dataclass
class Rows:
    """Rows that samples are put into one after the other.

    Args:
        capacity: positions of a row; limit: rows at most, None for any number.
    """

    capacity: int
    limit: int | None = None
    rows: list[list[int]] = field(default_factory=list)
    used: list[int] = field(default_factory=list)

    def add(self, number: int, length: int) -> bool:
        """Put a sample into the first row with room, or a new one; False when there is no room in any."""
        for row, used in enumerate(self.used):
            if used + length <= self.capacity:
                self.rows[row].append(number)
                self.used[row] += length
                return True
        if self.limit is not None and len(self.rows) >= self.limit:
            return False
        self.rows.append([number])
        self.used.append(length)
        return True


class TokenBudget:
    """Says, sample after sample, whether one more fits into a batch.

    Args:
        positions: the batch's budget, padding included; pack: positions of a packed row, None for a row each.
    """

    def __init__(self, positions: int, pack: int | None = None):
        self.positions = positions
        self.rows = Rows(pack, max(1, positions // pack)) if pack is not None else None
        self.count = self.longest = 0

    def add(self, length: int) -> bool:
        """Count a sample in, or say False and leave it out; the first always fits."""
        if self.rows is not None:
            taken = self.rows.add(self.count, length)
        else:
            longest = max(self.longest, length)
            taken = self.count == 0 or (self.count + 1) * longest <= self.positions
            self.longest = longest if taken else self.longest
        self.count += taken
        return taken
