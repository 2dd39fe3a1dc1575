"""From tokens, as they come, to the text that may already be shown."""

from __future__ import annotations

from collections.abc import Sequence

from chatbridge.common.tokenizer import Tokenizer
from chatbridge.conversation import PromptFormat, clean_answer
from chatbridge.conversation.stop import StopOnText, answer_tag

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What decoding gives for the first bytes of a character whose others are still to come."""


class GrowingText:
    """The text of a row of tokens that grows; only its end is decoded anew, so that long rows cost no more."""

    WINDOW = 16

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self._settled, self._start = "", 0

    def add(self, token: int) -> str:
        """Take one token; returns the whole text."""
        self.ids.append(token)
        end = self.tokenizer.decode(self.ids[self._start :])
        whole = self._settled + end
        if len(self.ids) - self._start >= 2 * self.WINDOW:
            middle = len(self.ids) - self.WINDOW
            rest = self.tokenizer.decode(self.ids[middle:])
            # A cut through a character shows here, and is tried again a token later.
            if rest.strip() and end.endswith(rest):
                self._settled, self._start = whole[: len(whole) - len(rest)], middle
        return whole


class VisibleText:
    """An answer in the making. Pieces that were shown are never taken back: together they are `text`.

    Held back is what the next tokens may turn out to be no part of the answer: the beginning of a stop text, white
    space at the end, bytes of an unfinished character, the answer's own tag at the start.

    Attributes:
        ids: the tokens so far; stopped: whether a stop text has been written; rule: says so of tokens.
    """

    def __init__(self, tokenizer: Tokenizer, format: PromptFormat, stop: Sequence[str]):
        self.tokenizer, self.format = tokenizer, format
        self.stops = tuple(dict.fromkeys((*format.stop, *stop)))
        self.rule = StopOnText(self.stops, tokenizer)
        self._tag = answer_tag(format)
        self._shown = ""
        self._written = GrowingText(tokenizer)
        self.stopped = False

    @property
    def ids(self) -> list[int]:
        return self._written.ids

    def add(self, token: int) -> str:
        """Take one token; returns the text that it lets be shown, which may be none."""
        written = self._written.add(token)
        self.stopped = self.rule(self.ids)
        return self._advance("" if self.stopped else self._certain(written))

    def end(self) -> str:
        """What is still to be shown now that no token follows."""
        return self._advance(self.text)

    @property
    def text(self) -> str:
        """The answer, as evaluation would have it, if no token followed."""
        return clean_answer(self.tokenizer.decode(self.ids), self.format, self.stops)

    def _certain(self, written: str) -> str:
        text = written.lstrip()
        if self._tag and text.startswith(self._tag):
            text = text[len(self._tag) :].lstrip()
        elif self._tag and self._tag.startswith(text.rstrip(_UNFINISHED)):
            return ""
        text = text.rstrip(_UNFINISHED)
        longest = max(map(len, self.stops)) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.stops):
                text = text[:-length]
                break
        return text.rstrip()

    def _advance(self, certain: str) -> str:
        new = certain[len(self._shown) :]
        self._shown += new
        return new
