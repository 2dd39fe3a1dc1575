"""Stage 1: each modality is aligned with language by captioning it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chatbridge.common.read_mode import EVALUATION, ReadMode
from chatbridge.common.registry import PROCESSORS, TASKS
from chatbridge.common.schema import key
from chatbridge.conversation.prompt import caption_segments
from chatbridge.datasets.dialogues import caption_of, sources_of
from chatbridge.datasets.kinds import CAPTION, TaskKind
from chatbridge.datasets.records import Record
from chatbridge.processors.text import CaptionTextConfig
from chatbridge.tasks.base import BaseTask, Rendered


@dataclass(kw_only=True)
class AlignmentConfig:
    max_txt_len: int = key(
        32, low=1, high=1 << 20, unit="tokens", help="of the caption, its end symbol included; media not counted"
    )
    end_sym: str = key("\n", help="closes a caption, and is learnt with it")
    caption: Any = key(CaptionTextConfig, registry=PROCESSORS, help="the text processor that cleans captions")


@TASKS.register("alignment", config=AlignmentConfig)
class AlignmentTask(BaseTask):
    """``[BOS][media rows][caption + end_sym]``, with the loss on caption and end symbol."""

    budget = "text"

    def __init__(self, config: AlignmentConfig):
        self.config = config
        self.clean = PROCESSORS.build(config.caption)
        self.max_txt_len = config.max_txt_len
        self.stop = (config.end_sym,) if config.end_sym else ()

    def check_kind(self, kind: TaskKind) -> None:
        if kind.kind != CAPTION:
            raise ValueError(f"the alignment task reads captions, not '{kind.name}'; use a kind such as 'ti-cap'")

    def render(
        self,
        record: Record,
        kind: TaskKind,
        mode: ReadMode = EVALUATION,
        item: int | None = None,
        prompt_only: bool = False,
    ) -> Rendered:
        caption = None if prompt_only else caption_of(record, mode, self.clean)
        segments = caption_segments(sources_of(record, kind.modalities), caption, self.config.end_sym)
        references = record.references or record.captions
        return Rendered(record.id, segments, "", references, record.group)
