"""The written form of a dialogue: tags, separators, the words that introduce media, and where the loss goes.

The defaults write what the published checkpoints were trained on (the original's data_task.py):
``###Human: Given following image: <slot>.###Human: question###Assistant:answer\\n###``, with the loss on each answer
up to and including the ``###`` that closes it. Other language models and other modalities need other words only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from chatbridge.common.schema import key
from chatbridge.conversation.dialogue import HUMAN, Dialogue, MediaSource
from chatbridge.conversation.segments import Media, Segment, Text, join_text, to_text

_SLOT = re.compile(r"\{([A-Za-z0-9_]+)\}")

_INTROS = {"video+audio": "Given following video: {video} and its background audio: {audio}."}
"""Sets of modalities whose introduction is not made of the general words."""


@dataclass(kw_only=True)
class PromptFormat:
    """How turns are written for one language model."""

    human: str = key("###Human: ", help="opens a human's turn")
    human_end: str = key("", help="closes a human's turn")
    assistant: str = key("###Assistant:", help="opens an answer")
    answer_end: str = key("###", help="closes an answer; supervised, and the text to stop on; not doubled by `human`")
    single_break: str = key("\n", help="stands before `answer_end` where a single question is answered (no chat)")
    system: str = key("", help="text before everything")
    intro_first: str = key("Given following {name}: ", help="introduces the first medium; {name} is its modality")
    intro_next: str = key(" and {name}: ", help="introduces every further medium")
    intro_end: str = key(".", help="closes an introduction")
    intros: dict[str, str] = key(
        {}, help="whole introductions by modality set, such as 'video+thermal': 'See {video}, its heat: {thermal}.'"
    )
    names: dict[str, str] = key({}, help="the word for a modality in introductions, where it is not its own name")

    def __post_init__(self) -> None:
        if not self.assistant or not self.answer_end:
            raise ValueError("`assistant` and `answer_end` cannot be empty: they mark where an answer begins and ends")
        for modalities, text in self.intros.items():
            slots = _SLOT.findall(text)
            if sorted(slots) != sorted(modalities.split("+")):
                raise ValueError(
                    f"intros['{modalities}'] must name each of its modalities once in braces, found {slots or 'none'}"
                )

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end an answer in generation."""
        return (self.answer_end,)

    def segments(self, dialogue: Dialogue) -> list[Segment]:
        """The dialogue as pieces of text and slots; when its last turn is the human's, the answer is left open."""
        pieces: list[Segment] = [Text(self.system)]
        closed = False
        for turn in dialogue.turns:
            if turn.role != HUMAN:
                ending = self.answer_end if dialogue.chat else self.single_break + self.answer_end
                pieces += [Text(self.assistant), Text(turn.text + ending, supervised=True)]
                closed = True
                continue
            if turn.sources:
                pieces += [Text(self._human(closed)), *self.introduction(turn.sources), Text(self.human_end)]
                closed = False
            if turn.text or not turn.sources:
                pieces.append(Text(self._human(closed) + turn.text + self.human_end))
                closed = False
        if not closed:
            pieces.append(Text(self.assistant))
        return join_text(pieces)

    def introduction(self, sources: Sequence[MediaSource]) -> list[Segment]:
        """The sentence that shows media, with a slot (or a description) for each."""
        by_name = {source.modality: source for source in sources}
        whole = self._whole_intro(tuple(by_name)) if len(by_name) == len(sources) else None
        if whole is not None:
            pieces: list[Segment] = []
            for index, part in enumerate(_SLOT.split(whole)):
                pieces.append(_slot(by_name[part]) if index % 2 else Text(part))
            return pieces
        pieces = []
        for index, source in enumerate(sources):
            words = self.intro_next if index else self.intro_first
            name = self.names.get(source.modality, source.modality)
            pieces += [Text(words.replace("{name}", name)), _slot(source)]
        return [*pieces, Text(self.intro_end)]

    def text(self, dialogue: Dialogue, placeholder: str = "<query>") -> str:
        """The whole dialogue as one string, media written as `placeholder`."""
        return to_text(self.segments(dialogue), placeholder)

    def parse(self, text: str, slots: Sequence[Media], placeholder: str = "<query>") -> list[Segment]:
        """Pieces of a dialogue that is already written, as the original's chatbridge.py reads it.

        Text before the last placeholder carries no loss; behind it, each answer from after `assistant` up to and
        including the next `answer_end` does; an answer that is never closed is prompt.

        Raises:
            ValueError: when there are not as many placeholders as slots.
        """
        parts = text.split(placeholder)
        if len(parts) - 1 != len(slots):
            raise ValueError(
                f"{len(parts) - 1} placeholders '{placeholder}' in the text, but {len(slots)} media for them"
            )
        pieces: list[Segment] = []
        for part, slot in zip(parts[:-1], slots, strict=True):
            pieces += [Text(part), slot]
        rest, start = parts[-1], 0
        while True:
            tag = rest.find(self.assistant, start)
            end = rest.find(self.answer_end, tag + len(self.assistant)) if tag >= 0 else -1
            if end < 0:
                break
            answer, end = tag + len(self.assistant), end + len(self.answer_end)
            pieces += [Text(rest[start:answer]), Text(rest[answer:end], supervised=True)]
            start = end
        return join_text([*pieces, Text(rest[start:])])

    def _human(self, closed: bool) -> str:
        """The tag of a human's turn; the separator that just closed an answer also opens what follows."""
        if closed and self.human.startswith(self.answer_end):
            return self.human[len(self.answer_end) :]
        return self.human

    def _whole_intro(self, modalities: tuple[str, ...]) -> str | None:
        wanted = set(modalities)
        for table in (self.intros, _INTROS):
            for names, text in table.items():
                if set(names.split("+")) == wanted:
                    return text
        return None


def caption_segments(sources: Sequence[MediaSource], caption: str | None, end_symbol: str = "\n") -> list[Segment]:
    """Stage 1: the media, then the caption and its end symbol, both supervised; no words around.

    A caption of None leaves it open: the media alone, for the model to describe.
    """
    pieces: list[Segment] = [_slot(source) for source in sources]
    if caption is not None:
        pieces.append(Text(caption + end_symbol, supervised=True))
    return join_text(pieces)


def _slot(source: MediaSource) -> Segment:
    if source.text is None:
        return Media(source.modality, source.count)
    return Text(source.text.strip().rstrip("."), apart=True)  # the introduction has its own full stop
