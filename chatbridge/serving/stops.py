"""Texts that end an answer, where a request brings its own."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Passes an answer on up to the first of `texts`; what may be the beginning of one is held back.

    Attributes:
        found: whether one of them has come.
    """

    def __init__(self, texts: Sequence[str]):
        self.texts = tuple(texts)
        self.found = False
        self._held = ""

    def add(self, piece: str) -> str:
        """Take a piece of the answer; returns what may be shown."""
        text = self._held + piece
        ends = [place for place in map(text.find, self.texts) if place >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)]
        held = max((_overlap(text, stop) for stop in self.texts), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def end(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
