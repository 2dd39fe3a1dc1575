"""From an annotation record to what is said: dialogues for stage 2, captions for stage 1."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from chatbridge.common.read_mode import EVALUATION, ReadMode, Training
from chatbridge.conversation.dialogue import Dialogue, MediaSource
from chatbridge.conversation.templates import QUESTION, Templates
from chatbridge.datasets.kinds import CAPTION, FIRST_PAIR, OCR, TaskKind
from chatbridge.datasets.records import Record
from chatbridge.processors.text import pre_caption

MAX_ENTRIES = 8
"""Entries of a conversation that are kept: four exchanges, as in the original."""

TAGS = ("<image>", "<video>", "<audio>")


@dataclass(frozen=True, slots=True)
class DialogueSample:
    """A dialogue with what evaluation needs beside it."""

    id: str
    dialogue: Dialogue
    references: tuple[str, ...] = ()
    group: str = ""


@dataclass
class DialogueMaker:
    """Makes dialogues of one task kind from records.

    Args:
        kind: what is shown and asked.
        templates: what the human says for captions, questions and OCR.
        names: words for modalities in templates, where they are not their own names.
        max_entries: how many entries of a conversation are kept (None: all).
    """

    kind: TaskKind
    templates: Templates
    names: Mapping[str, str] = field(default_factory=dict)
    max_entries: int | None = MAX_ENTRIES

    def __post_init__(self) -> None:
        if self.kind.asks or self.kind.kind in (CAPTION, OCR):
            self.choices()  # a missing list is found now, not at the first sample

    def sample(self, record: Record, mode: ReadMode = EVALUATION, item: int | None = None) -> DialogueSample:
        """One sample of a record.

        Args:
            record: checked for this kind; an answer that is missing leaves the dialogue open.
            mode: in training captions, question-answer pairs, answers and templates are drawn (in this order); in
                evaluation it is the first caption, pair and template, and the most frequent answer.
            item: which caption or pair, instead of a draw.
        """
        if self.kind.asks:
            return self._question(record, mode, item)
        if self.kind.kind == CAPTION:
            return self._caption(record, mode, item)
        if self.kind.kind == OCR:
            answer = ", ".join(record.ocr) if record.ocr else None
            return self._single(record, self._prompt(None, mode), answer, [answer] if answer else [])
        return self._conversation(record)

    def _question(self, record: Record, mode: ReadMode, item: int | None) -> DialogueSample:
        question, answers = record.pairs[item] if item is not None else _draw(record.pairs, mode)
        answer = None
        if answers and isinstance(mode, Training):
            answer = _draw(answers, mode)
        elif answers:
            answer = Counter(answers).most_common(1)[0][0]
        suffix = f"/{item}" if item is not None else ""
        return self._single(record, self._prompt(question, mode), answer, answers, suffix)

    def _caption(self, record: Record, mode: ReadMode, item: int | None) -> DialogueSample:
        captions = record.captions
        answer = None
        if captions:
            answer = captions[item] if item is not None else _draw(captions, mode)
        return self._single(record, self._prompt(None, mode), answer, captions)

    def _conversation(self, record: Record) -> DialogueSample:
        single = self.kind.kind in FIRST_PAIR
        turns = record.turns[: 2 if single else self.max_entries]
        exchanges = []
        for place in range(0, len(turns), 2):
            question = self.clean(turns[place][1])
            answer = turns[place + 1][1] if place + 1 < len(turns) else None
            exchanges.append((question, answer))
        if len(exchanges) > 1 and exchanges[-1][1] is None:
            exchanges.pop()  # a last question without an answer teaches nothing
        dialogue = Dialogue.about(sources_of(record, self.kind.modalities), exchanges, chat=not single)
        answer = exchanges[-1][1]
        return self._sample(record, dialogue, [answer] if answer is not None else [])

    def _single(
        self, record: Record, prompt: str, answer: str | None, references: Sequence[str], suffix: str = ""
    ) -> DialogueSample:
        dialogue = Dialogue.about(sources_of(record, self.kind.modalities), [(prompt, answer)])
        return self._sample(record, dialogue, references, suffix)

    def _sample(
        self, record: Record, dialogue: Dialogue, references: Sequence[str], suffix: str = ""
    ) -> DialogueSample:
        return DialogueSample(record.id + suffix, dialogue, record.references or tuple(references), record.group)

    def _prompt(self, question: str | None, mode: ReadMode) -> str:
        choices = self.choices()
        text = mode.rng.choice(choices) if isinstance(mode, Training) else choices[0]
        return text if question is None else text.replace(QUESTION, question)

    def choices(self) -> tuple[str, ...]:
        """The templates of this kind. Raises ValueError when there are none."""
        names = [self.names.get(modality, modality) for modality in self.kind.modalities]
        return self.templates.choices(self.kind.name, self.kind.kind, names)

    def clean(self, text: str) -> str:
        """A question of a conversation, without what stood for media in its source."""
        return clean_tags(text, self.kind.modalities)


def sources_of(record: Record, modalities: Sequence[str]) -> tuple[MediaSource, ...]:
    """What a record shows: real media where it names files, its descriptions where it has only those."""
    sources = []
    for modality in modalities:
        files = record.files_of(modality)
        text = None if files else record.descriptions[modality]
        sources.append(MediaSource(modality, max(1, len(files)), text))
    return tuple(sources)


def caption_of(record: Record, mode: ReadMode = EVALUATION, clean: Callable[[str], str] = pre_caption) -> str:
    """A cleaned caption for stage 1: a random one of the list in training, else the first.

    Raises:
        ValueError: when the record has none.
    """
    if not record.captions:
        raise ValueError(f"record '{record.id}' has no caption (desc or caption) to align with")
    return clean(_draw(record.captions, mode))


def clean_tags(text: str, modalities: Sequence[str] = ()) -> str:
    """A question without tags such as ``<image>`` that stood for media in its source."""
    tags = (*TAGS, *(f"<{modality}>" for modality in modalities))
    for tag in tags:
        text = text.replace(tag + "\n", "").replace("\n" + tag, "")
    return re.sub("|".join(r"[ \t]*" + re.escape(tag) for tag in tags), "", text).strip()


def _draw(items: Sequence, mode: ReadMode):
    """One of the items, the first in evaluation; no number is drawn where there is no choice."""
    return mode.rng.choice(items) if isinstance(mode, Training) and len(items) > 1 else items[0]
