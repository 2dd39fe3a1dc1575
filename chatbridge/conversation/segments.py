"""What a rendered sample is made of: pieces of text, and slots that media fill.

Loss is a property of a piece, set where the piece is made; nothing is ever found again by searching the text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text.

    Attributes:
        text: its characters.
        supervised: whether its tokens carry the loss.
        apart: keep it a piece of its own even beside unsupervised text (descriptions that stand in for media are
            kept apart, so that what surrounds them has the very tokens it has around the media).
    """

    text: str
    supervised: bool = False
    apart: bool = False

    def merges_with(self, other: Segment) -> bool:
        """Whether the tokenizer should see this piece and the one behind it as one."""
        return isinstance(other, Text) and not (self.supervised or self.apart or other.supervised or other.apart)


@dataclass(frozen=True, slots=True)
class Media:
    """A slot for `count` media of one modality, one after the other (several images, say)."""

    modality: str
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"a slot needs at least one medium, not {self.count} of '{self.modality}'")


Segment = Text | Media


def join_text(segments: Iterable[Segment]) -> list[Segment]:
    """The same segments without empty texts and with unsupervised neighbours written as one piece.

    A piece is what the tokenizer sees at once, so this decides the token ids: the original splits a conversation at
    media slots and at the two ends of every answer, and nowhere else.
    """
    joined: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Text):
            if not segment.text:
                continue
            last = joined[-1] if joined else None
            if isinstance(last, Text) and last.merges_with(segment):
                joined[-1] = Text(last.text + segment.text)
                continue
        joined.append(segment)
    return joined


def to_text(segments: Iterable[Segment], placeholder: str = "<query>") -> str:
    """One string for people and for tests: every medium is written as `placeholder` ("{}" takes the modality)."""
    parts = []
    for segment in segments:
        if isinstance(segment, Text):
            parts.append(segment.text)
        else:
            parts.append(placeholder.replace("{}", segment.modality) * segment.count)
    return "".join(parts)
