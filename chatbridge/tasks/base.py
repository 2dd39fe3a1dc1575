"""What every task is: a rule from an annotation to the pieces of text and the media slots that the model reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatbridge.common.read_mode import EVALUATION, ReadMode
from chatbridge.conversation.segments import Segment
from chatbridge.conversation.tokens import TokenizedSample, fit_into, tokenize
from chatbridge.datasets.collate import Collator
from chatbridge.datasets.kinds import TaskKind
from chatbridge.datasets.records import Record
from chatbridge.processors.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Rendered:
    """One sample before tokenisation.

    Attributes:
        id: the record's, with the question's number where a record has several.
        segments: pieces of text and slots.
        question: what the human asked last, for reports.
        references: acceptable answers.
        group: the record's label for reports.
    """

    id: str
    segments: list[Segment]
    question: str = ""
    references: tuple[str, ...] = ()
    group: str = ""


class BaseTask(ABC):
    """A training objective's way of writing samples. The loss itself, cross-entropy, is the model's.

    Attributes:
        max_txt_len: the limit of `tokenize`, BOS not counted; budget: what it counts, "text" or "all" positions.
        fit: makes a sample fit that is over the limit, as `tokenize` takes it.
        stop: texts that end a generated answer.
    """

    max_txt_len: int
    budget: str = "all"
    fit = staticmethod(fit_into)
    stop: tuple[str, ...] = ()

    def parse(self, entry: Any, index: int = 0) -> Record:
        """An annotation entry, typed; see `Record.parse`."""
        return Record.parse(entry, index)

    @abstractmethod
    def render(
        self,
        record: Record,
        kind: TaskKind,
        mode: ReadMode = EVALUATION,
        item: int | None = None,
        prompt_only: bool = False,
    ) -> Rendered:
        """One sample of a record.

        Args:
            mode: in training templates, captions and questions are drawn; in evaluation the first of each is taken.
            item: which question of a record with several.
            prompt_only: leave the last answer out, for the model to give.
        """

    def items(self, record: Record, kind: TaskKind) -> Sequence[int | None]:
        """The numbers of a record's questions that evaluation asks one by one; [None] where there is one."""
        return range(len(record.pairs)) if kind.asks and len(record.pairs) > 1 else [None]

    def check_kind(self, kind: TaskKind) -> None:
        """Raise ValueError when this task cannot write samples of a kind."""

    def tokenize(self, rendered: Rendered, tokenizer: Tokenizer, rows: Mapping[str, int]) -> TokenizedSample:
        """Token ids, labels and slots of a sample, within this task's limit."""
        return tokenize(
            rendered.id,
            rendered.segments,
            tokenizer,
            rows,
            max_tokens=self.max_txt_len,
            budget=self.budget,
            fit=self.fit,
        )

    def collator(self, tokenizer: Tokenizer) -> Collator:
        """What makes training batches of samples."""
        return Collator.of(tokenizer)
