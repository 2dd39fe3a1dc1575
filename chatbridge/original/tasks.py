"""The original's samples: what annotations say, which templates there are, what is cut, where BOS stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from chatbridge.common.batch import IGNORE, TEXT, MultimodalBatch
from chatbridge.common.registry import TASKS
from chatbridge.conversation.tokens import Piece, TokenizedSample
from chatbridge.datasets.collate import Collator, Example
from chatbridge.datasets.dialogues import TAGS, DialogueMaker
from chatbridge.datasets.records import Record, is_blank, is_missing
from chatbridge.processors.tokenizer import Tokenizer
from chatbridge.tasks.alignment import AlignmentConfig, AlignmentTask
from chatbridge.tasks.base import BaseTask, Rendered
from chatbridge.tasks.instruction import InstructionConfig, InstructionTask

PREFIXES = ("ti", "tv", "ta", "tva")
"""Of the task kinds that its stage 2 can write."""


def parse(entry: Any, index: int = 0) -> Record:
    """An absent caption is the text "[None]", and a list of answers to one question is one answer, the list as Python
    prints it."""
    if isinstance(entry, Mapping):
        caption, answer = (entry.get("caption") if is_blank(entry.get("desc")) else ""), entry.get("answer")
        entry = {**entry, "caption": "[None]"} if is_missing(caption) else entry
        if isinstance(answer, list) and not isinstance(entry.get("question"), list):
            entry = {**entry, "answer": str(answer)}
    return Record.parse(entry, index)


def cut_at(sample_id: str, pieces: Sequence[Piece], limit: int) -> list[Piece]:
    """The first `limit` positions, whatever stands there: through media, and before every label."""
    kept, room = [], limit
    for piece in pieces:
        taken = min(len(piece), room)
        kept.append(replace(piece, ids=piece.ids[:taken], length=taken if piece.media is not None else 0))
        room -= taken
    return kept


def clean_tags(text: str) -> str:
    """Tags of media are removed beside a line break only."""
    for tag in TAGS:
        text = text.replace(tag + "\n", "").replace("\n" + tag, "")
    return text


class OriginalDialogueMaker(DialogueMaker):
    """Wants templates for the very kind."""

    def __post_init__(self) -> None:
        if self.kind.prefix not in PREFIXES:
            raise ValueError(f"the original cannot render task '{self.kind.name}'; use compat: default")
        super().__post_init__()

    def choices(self) -> tuple[str, ...]:
        if self.kind.name not in self.templates.by_task:
            known = ", ".join(sorted(self.templates.by_task))
            raise ValueError(f"the original has no templates for '{self.kind.name}', only for: {known}")
        return super().choices()

    def clean(self, text: str) -> str:
        return clean_tags(text)


class OriginalCollator(Collator):
    """Pads on the left; BOS is in column 0, in front of the padding and with the mask of the column behind it, so that
    padded rows do not see it; position ids count columns."""

    def __call__(self, examples: Sequence[Example], sources: str | Sequence[str] = "") -> MultimodalBatch:
        batch = Collator(None, self.pad_id, self.padding)(examples, sources)

        def put_in_front(name: str, column: Tensor) -> None:
            setattr(batch, name, torch.cat([column, getattr(batch, name)], dim=1))

        if self.bos_id is not None:
            column = torch.full_like(batch.input_ids_BL[:, :1], self.bos_id)
            put_in_front("input_ids_BL", column)
            put_in_front("attention_mask_BL", batch.attention_mask_BL[:, :1])
            put_in_front("labels_BL", torch.full_like(column, IGNORE))
            put_in_front("slots_BL", torch.full_like(column, TEXT))
        rows, length = batch.input_ids_BL.shape
        batch.position_ids_BL = torch.arange(length).expand(rows, length).clone()
        return batch


class OriginalTask(BaseTask):
    """What both stages have in common."""

    fit = staticmethod(cut_at)

    def parse(self, entry: Any, index: int = 0) -> Record:
        return parse(entry, index)


@dataclass(kw_only=True)
class OriginalAlignmentConfig(AlignmentConfig):
    """The keys of the alignment task."""


@TASKS.variant("alignment", "original", config=OriginalAlignmentConfig, help="its truncation and labels")
class OriginalAlignmentTask(OriginalTask, AlignmentTask):
    def tokenize(self, rendered: Rendered, tokenizer: Tokenizer, rows: Mapping[str, int]) -> TokenizedSample:
        """A label that is the padding id is taken for padding."""
        sample = super().tokenize(rendered, tokenizer, rows)
        sample.labels = [IGNORE if label == tokenizer.pad_id else label for label in sample.labels]
        return sample


@dataclass(kw_only=True)
class OriginalInstructionConfig(InstructionConfig):
    """The keys of the instruction task."""


@TASKS.variant("instruction", "original", config=OriginalInstructionConfig, help="truncation, BOS, data quirks")
class OriginalInstructionTask(OriginalTask, InstructionTask):
    dialogue_maker = OriginalDialogueMaker

    def collator(self, tokenizer: Tokenizer) -> Collator:
        return OriginalCollator.of(tokenizer, "left")
