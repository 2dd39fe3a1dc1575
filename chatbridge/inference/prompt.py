"""Prompts: a conversation as the positions that the language model reads, formatted as in training."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from chatbridge.conversation import ASSISTANT, HUMAN, Dialogue, MediaSource, PromptFormat, Turn, tokenize
from chatbridge.inference.attachments import Medium
from chatbridge.processors.tokenizer import Tokenizer

Position = int | tuple[str, int]
"""What stands at a position: a token's id, or a medium's identity and the number of its row. Equal positions behind
equal positions have equal keys and values in the language model's cache."""

CHARACTERS_PER_TOKEN = 256
"""No token of a common vocabulary is longer."""


@dataclass
class Exchange:
    """One turn: a question with its media, and its answer.

    Attributes:
        text: the question; it may be empty where something is shown.
        media: in the order shown, before the text.
        answer: None while there is none.
        finish: why the answer ended: "stop", "length" or "cancelled"; "" where that is not known.
    """

    text: str
    media: list[Medium] = field(default_factory=list)
    answer: str | None = None
    finish: str = ""


@dataclass(frozen=True)
class Prompt:
    """What the model reads before it answers.

    Attributes:
        positions: every position, BOS included.
        media: where each medium's rows begin, in reading order.
        dropped: how many of the oldest exchanges were left out to make it fit.
    """

    positions: list[Position]
    media: list[tuple[int, Medium]]
    dropped: int = 0


@dataclass(frozen=True)
class PromptWriter:
    """Formats conversations as a task does in training.

    Args:
        prompt_format: the task's; tokenizer: the language model's; rows: modality -> rows of one medium.
    """

    prompt_format: PromptFormat
    tokenizer: Tokenizer
    rows: Mapping[str, int]

    def fit(self, exchanges: Sequence[Exchange], limit: int) -> Prompt:
        """The conversation without its oldest exchanges, as many as it takes to keep within `limit` positions, BOS
        included.

        Raises:
            ValueError: when the newest exchange alone takes more.
        """
        newest = exchanges[-1]
        most = CHARACTERS_PER_TOKEN * max(1, limit)  # longer texts cannot fit; their tokens are not counted
        if len(newest.text) > most:
            raise ValueError(f"a text of {len(newest.text):,} characters cannot fit into {limit} positions; shorten it")
        first, characters = len(exchanges) - 1, len(newest.text)
        while first and (characters := characters + _characters(exchanges[first - 1])) <= most:
            first -= 1
        positions, media = self.write(exchanges[first:])
        if len(positions) <= limit:
            return Prompt(positions, media, first)
        # Fewer exchanges take fewer positions, so how many to drop is found by bisection.
        last = bisect_left(range(len(exchanges)), True, first + 1, key=lambda n: self._fits(exchanges[n:], limit))
        if last < len(exchanges):
            return Prompt(*self.write(exchanges[last:]), last)
        positions, _ = self.write(exchanges[-1:])
        shown = sum(self.rows[medium.modality] for medium in newest.media)
        raise ValueError(
            f"the newest question takes {len(positions)} positions ({shown} of them its {len(newest.media)} media), "
            f"and {limit} are left for it; shorten its text, show fewer media or lower max_new_tokens"
        )

    def _fits(self, exchanges: Sequence[Exchange], limit: int) -> bool:
        return len(self.write(exchanges)[0]) <= limit

    def write(self, exchanges: Sequence[Exchange]) -> tuple[list[Position], list[tuple[int, Medium]]]:
        """Every position of the conversation, and where its media stand. A last answer is written out, too."""
        sample = tokenize(
            "conversation", self.prompt_format.segments(dialogue_of(exchanges)), self.tokenizer, self.rows
        )
        prefix = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        positions: list[Position] = [*prefix, *sample.input_ids]
        waiting: dict[str, list[Medium]] = {}
        for medium in (medium for exchange in exchanges for medium in exchange.media):
            waiting.setdefault(medium.modality, []).append(medium)
        media = []
        for slot in sample.slots:
            rows = slot.length // slot.count
            for number in range(slot.count):
                # An introduction may name its modalities in an order of its own: within each, the order holds.
                medium = waiting[slot.modality].pop(0)
                start = len(prefix) + slot.start + number * rows
                positions[start : start + rows] = [(medium.identity, row) for row in range(rows)]
                media.append((start, medium))
        return positions, media


def _characters(exchange: Exchange) -> int:
    return len(exchange.text) + len(exchange.answer or "")


def dialogue_of(exchanges: Sequence[Exchange]) -> Dialogue:
    """The conversation as training reads it: one chat, media of a kind in a row as one source."""
    turns = []
    for exchange in exchanges:
        runs = groupby(exchange.media, key=lambda medium: medium.modality)
        sources = tuple(MediaSource(modality, len(list(run))) for modality, run in runs)
        turns.append(Turn(HUMAN, exchange.text, sources))
        if exchange.answer is not None:
            turns.append(Turn(ASSISTANT, exchange.answer))
    return Dialogue(tuple(turns), chat=True)
