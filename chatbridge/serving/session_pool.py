"""Sessions kept from one stateless request to the next, so that a further turn costs its own positions only.

A request is matched with what was read before by its content: every token, and every row of every medium by its
SHA-256. Nothing but what a client sent itself can therefore influence its answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from chatbridge.inference import ChatSession
from chatbridge.inference.prefix_cache import common_prefix
from chatbridge.inference.prompt import Position


@dataclass
class PooledSession:
    """A session and what its cache holds.

    Attributes:
        positions: that its language model has read; owner: for whom.
    """

    session: ChatSession
    positions: list[Position]
    owner: str


class SessionPool:
    """The most recently used sessions, as many as together hold `max_positions`.

    Args:
        make: a new session.
        max_positions: of keys and values to keep in memory; 0 keeps none.
    """

    def __init__(self, make: Callable[[], ChatSession], max_positions: int):
        self._make, self.max_positions = make, max_positions
        self._idle: list[PooledSession] = []
        self._lock = threading.Lock()

    @contextmanager
    def acquire(self, positions: Sequence[Position], owner: str = "") -> Iterator[PooledSession]:
        """A session to answer a prompt with, for the caller alone. Set its `positions` to what was read.

        One that fails is not used again.
        """
        with self._lock:
            pooled = self._best(positions, owner)
            if pooled is not None:
                self._idle.remove(pooled)
        if pooled is None:
            pooled = PooledSession(self._make(), [], owner)
        yield pooled
        pooled.session.turns = []  # frees the bytes of media
        with self._lock:
            self._idle.append(pooled)
            while self._idle and sum(len(one.positions) for one in self._idle) > self.max_positions:
                self._idle.pop(0)

    def _best(self, positions: Sequence[Position], owner: str) -> PooledSession | None:
        """The session with the longest common prefix, if cutting it back loses less than it saves."""
        best, longest = None, 0
        for pooled in self._idle:
            common = common_prefix(pooled.positions, positions) if pooled.owner == owner else 0
            if common > longest and 2 * common >= len(pooled.positions):
                best, longest = pooled, common
        return best
