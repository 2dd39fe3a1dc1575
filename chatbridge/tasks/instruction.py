"""Stage 2: dialogues about any mixture of media, in the prompt format of the language model."""

from __future__ import annotations

from dataclasses import dataclass

from chatbridge.common.read_mode import EVALUATION, ReadMode
from chatbridge.common.registry import TASKS
from chatbridge.common.schema import key
from chatbridge.conversation.dialogue import HUMAN
from chatbridge.conversation.prompt import PromptFormat
from chatbridge.conversation.templates import Templates
from chatbridge.datasets.dialogues import MAX_ENTRIES, DialogueMaker
from chatbridge.datasets.kinds import TaskKind
from chatbridge.datasets.records import Record
from chatbridge.tasks.base import BaseTask, Rendered


@dataclass(kw_only=True)
class InstructionConfig:
    max_txt_len: int = key(
        220, low=1, high=1 << 20, unit="positions", help="of a sample, media included, BOS not counted"
    )
    prompt: PromptFormat = key(PromptFormat, help="tags, separators and introductions of media")
    templates: list[str] = key([], path=True, help="template files; their lists replace or add to the built-in ones")
    max_entries: int | None = key(MAX_ENTRIES, low=2, unit="turns", help="of a conversation that are kept")


@TASKS.register("instruction", config=InstructionConfig)
class InstructionTask(BaseTask):
    """``###Human: <intro with media>.###Human: question###Assistant:answer###``, with the loss on answers."""

    dialogue_maker = DialogueMaker

    def __init__(self, config: InstructionConfig):
        self.config = config
        self.max_txt_len = config.max_txt_len
        self.prompt = config.prompt
        self.stop = config.prompt.stop
        self.templates = Templates.load(*config.templates)
        self._makers: dict[TaskKind, DialogueMaker] = {}

    def check_kind(self, kind: TaskKind) -> None:
        self._maker(kind)

    def render(
        self,
        record: Record,
        kind: TaskKind,
        mode: ReadMode = EVALUATION,
        item: int | None = None,
        prompt_only: bool = False,
    ) -> Rendered:
        sample = self._maker(kind).sample(record, mode, item)
        dialogue = sample.dialogue.opened() if prompt_only else sample.dialogue
        question = next((turn.text for turn in reversed(dialogue.turns) if turn.role == HUMAN), "")
        return Rendered(sample.id, self.prompt.segments(dialogue), question, sample.references, sample.group)

    def _maker(self, kind: TaskKind) -> DialogueMaker:
        if kind not in self._makers:
            config = self.config
            self._makers[kind] = self.dialogue_maker(kind, self.templates, config.prompt.names, config.max_entries)
        return self._makers[kind]
