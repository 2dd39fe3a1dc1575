"""Sessions kept from one stateless request to the next, so that a further turn costs its own positions only.

A request is matched with what was read before by its content: every token, and every row of every medium by its
SHA-256. Nothing but what a client sent itself can therefore come into its answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from chatbridge.inference import ChatSession
from chatbridge.inference.prompt import Position


@dataclass
class Kept:
    """A session that nobody is using, and what its cache holds.

    Attributes:
        positions: that its language model has read; owner: for whom.
    """

    session: ChatSession
    positions: list[Position]
    owner: str


class Sessions:
    """The most recently used sessions, as many as together hold `most_positions`.

    Args:
        make: a new session.
        most_positions: of keys and values to keep in memory; 0 keeps none.
    """

    def __init__(self, make: Callable[[], ChatSession], most_positions: int):
        self._make, self.most_positions = make, most_positions
        self._idle: list[Kept] = []
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, positions: Sequence[Position], owner: str = "") -> Iterator[Kept]:
        """A session to answer a prompt with, nobody else's meanwhile. Set its `positions` to what was read.

        One that fails is not used again.
        """
        with self._lock:
            kept = self._best(positions, owner)
            if kept is not None:
                self._idle.remove(kept)
        if kept is None:
            kept = Kept(self._make(), [], owner)
        yield kept
        kept.session.turns = []  # and with them the bytes of media
        with self._lock:
            self._idle.append(kept)
            while self._idle and sum(len(one.positions) for one in self._idle) > self.most_positions:
                self._idle.pop(0)

    def _best(self, positions: Sequence[Position], owner: str) -> Kept | None:
        """The session with the longest common beginning, if it loses less by being cut back than it saves."""
        best, most = None, 0
        for kept in self._idle:
            common = _common(kept.positions, positions) if kept.owner == owner else 0
            if common > most and 2 * common >= len(kept.positions):
                best, most = kept, common
        return best


def _common(one: Sequence[Position], other: Sequence[Position]) -> int:
    for number, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return number
    return min(len(one), len(other))
