"""Streaming detokenization: from tokens, one at a time, to the text that can already be shown."""

from __future__ import annotations

from collections.abc import Sequence

from chatbridge.common.tokenizer import Tokenizer
from chatbridge.conversation import PromptFormat, clean_answer
from chatbridge.conversation.stop import StopOnText, answer_tag

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What decoding gives for the first bytes of a character whose others are still to come."""


class IncrementalDecoder:
    """The text of a growing row of tokens; only its end is decoded anew, so that long rows cost no more per token."""

    WINDOW = 16

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self._prefix, self._start = "", 0

    def add(self, token: int) -> str:
        """Take one token; returns the whole text."""
        self.ids.append(token)
        end = self.tokenizer.decode(self.ids[self._start :])
        whole = self._prefix + end
        if len(self.ids) - self._start >= 2 * self.WINDOW:
            middle = len(self.ids) - self.WINDOW
            rest = self.tokenizer.decode(self.ids[middle:])
            # A cut through a character shows here, and is tried again a token later.
            if rest.strip() and end.endswith(rest):
                self._prefix, self._start = whole[: len(whole) - len(rest)], middle
        return whole


class StreamedText:
    """An answer while it is generated. Pieces that were returned are never taken back: together they are `text`.

    Held back is what further tokens may show to be no part of the answer: the beginning of a stop text, white space at
    the end, bytes of an incomplete character, the answer's own tag at the start.

    Attributes:
        ids: the tokens so far; stopped: whether a stop text has been written; rule: says so of tokens.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_format: PromptFormat, stop: Sequence[str]):
        self.tokenizer, self.prompt_format = tokenizer, prompt_format
        self.stops = tuple(dict.fromkeys((*prompt_format.stop, *stop)))
        self.rule = StopOnText(self.stops, tokenizer)
        self._tag = answer_tag(prompt_format)
        self._returned = ""
        self._decoder = IncrementalDecoder(tokenizer)
        self.stopped = False

    @property
    def ids(self) -> list[int]:
        return self._decoder.ids

    def add(self, token: int) -> str:
        """Take one token; returns the text that can now be shown, which may be none."""
        decoded = self._decoder.add(token)
        self.stopped = self.rule(self.ids)
        return self._advance("" if self.stopped else self._certain(decoded))

    def end(self) -> str:
        """What is still to be shown, as no token follows."""
        return self._advance(self.text)

    @property
    def text(self) -> str:
        """The answer, as evaluation would have it, if no token followed."""
        return clean_answer(self.tokenizer.decode(self.ids), self.prompt_format, self.stops)

    def _certain(self, decoded: str) -> str:
        text = decoded.lstrip()
        if self._tag and text.startswith(self._tag):
            text = text[len(self._tag) :].lstrip()
        elif self._tag and self._tag.startswith(text.rstrip(_INCOMPLETE)):
            return ""
        text = text.rstrip(_INCOMPLETE)
        return text[: len(text) - _partial_stop(text, self.stops)].rstrip()

    def _advance(self, certain: str) -> str:
        new = certain[len(self._returned) :]
        self._returned += new
        return new


class StopTextFilter:
    """Passes streamed text on up to the first of `texts`; what may be the beginning of one is held back.

    Attributes:
        found: whether one of them has come.
    """

    def __init__(self, texts: Sequence[str]):
        self.texts = tuple(texts)
        self.found = False
        self._held = ""

    def add(self, piece: str) -> str:
        """Take a piece of the text; returns what can be shown."""
        text = self._held + piece
        ends = [place for place in map(text.find, self.texts) if place >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)]
        held = _partial_stop(text, self.texts)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def end(self) -> str:
        """What was held back, as nothing follows."""
        held, self._held = self._held, ""
        return held


def _partial_stop(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of `text` that a stop text begins with."""
    for length in range(min(len(text), max(map(len, stops), default=1) - 1), 0, -1):
        end = text[-length:]
        if any(stop.startswith(end) for stop in stops):
            return length
    return 0
