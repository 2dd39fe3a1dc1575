"""A dialogue about media, before any prompt format is applied to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

HUMAN = "human"
ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class MediaSource:
    """Something that is looked at or listened to.

    Attributes:
        modality: its name ("image", "video", "audio", or one that a plugin adds).
        count: how many media of it stand here, one after the other.
        text: None for real media; else a description that is written where the media would stand.
    """

    modality: str
    count: int = 1
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One utterance, with the media that are shown along with it (before its text)."""

    role: str
    text: str = ""
    sources: tuple[MediaSource, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in (HUMAN, ASSISTANT):
            raise ValueError(f"a turn is by '{HUMAN}' or '{ASSISTANT}', not by '{self.role}'")
        if self.role == ASSISTANT and self.sources:
            raise ValueError("an assistant's turn cannot show media")


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns in order.

    Attributes:
        turns: who said what. A last turn by the human leaves the dialogue open.
        chat: several exchanges in a row (MULTIS conversations), whose answers are closed without a line break;
            answers of single questions have one, as in the original's data_task.py.
    """

    turns: tuple[Turn, ...]
    chat: bool = False

    @classmethod
    def about(
        cls, sources: Sequence[MediaSource], exchanges: Sequence[tuple[str, str | None]], chat: bool = False
    ) -> Dialogue:
        """Media first, then pairs of question and answer; an answer of None leaves the dialogue open there."""
        turns = [Turn(HUMAN, "", tuple(sources))] if sources else []
        for question, answer in exchanges:
            turns.append(Turn(HUMAN, question))
            if answer is not None:
                turns.append(Turn(ASSISTANT, answer))
        return cls(tuple(turns), chat)

    @property
    def sources(self) -> tuple[MediaSource, ...]:
        """All media of the dialogue, in reading order."""
        return tuple(source for turn in self.turns for source in turn.sources)

    @property
    def answer(self) -> str | None:
        """The last answer, or None when the dialogue is open."""
        last = self.turns[-1] if self.turns else None
        return last.text if last is not None and last.role == ASSISTANT else None

    def opened(self) -> Dialogue:
        """The same dialogue without its last answer: what a model is asked to continue."""
        return self if self.answer is None else replace(self, turns=self.turns[:-1])

    def replaced(self, descriptions: dict[str, str]) -> Dialogue:
        """The same dialogue with the media of some modalities replaced by text (modality -> description)."""
        turns = []
        for turn in self.turns:
            sources = tuple(replace(s, text=descriptions.get(s.modality, s.text)) for s in turn.sources)
            turns.append(replace(turn, sources=sources))
        return replace(self, turns=tuple(turns))
