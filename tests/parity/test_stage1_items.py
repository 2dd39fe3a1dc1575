"""Stage-1 dataset items: captions cleaned, lists kept whole for evaluation, what is missing refused."""

from __future__ import annotations

import random

import pytest

from chatbridge.common.read_mode import Training
from chatbridge.datasets.dialogues import caption_of
from chatbridge.datasets.kinds import TaskKind
from chatbridge.datasets.records import Record
from chatbridge.processors.text import pre_caption

CAPTION = TaskKind.parse("tv-cap")


def has_content(annotation):
    return bool({"desc", "caption", "question", "text"} & annotation.keys())


def test_items(golden_json):
    for result in golden_json("valor_stage1_items")["results"]:
        annotation, batch = result["annotation"], result["batch"]
        if batch is None:
            continue
        record = Record.parse(annotation)
        captions = [pre_caption(caption) for caption in record.captions]
        assert [record.id] == batch["ids"]
        assert (captions or [None]) == batch["text_input"]
        assert ([question for question, _ in record.pairs] or [None]) == batch["question"]
        assert ([answers[0] for _, answers in record.pairs] or [None]) == batch["answer"]
        # Stage 1 joins OCR texts by a bare comma, stage 2 by comma and space; we use the latter (see the dialogues).
        assert [",".join(record.ocr) if record.ocr else None] == batch["text"]
        assert [max(1, len(record.captions), len(record.pairs))] == batch["sample_num"]
        if captions:
            assert caption_of(record) == captions[0]


def test_where_the_original_fails(golden_json):
    """Lists in training are drawn from; an entry with nothing in it is refused with what it lacks."""
    for result in golden_json("valor_stage1_items")["results"]:
        annotation = result["annotation"]
        if result["batch"] is not None:
            continue
        record = Record.parse(annotation)
        if not has_content(annotation):
            with pytest.raises(ValueError, match="caption"):
                record.check(CAPTION)
            with pytest.raises(ValueError, match="caption"):
                caption_of(record)
        elif record.captions:
            drawn = {caption_of(record, Training(random.Random(seed))) for seed in range(40)}
            assert drawn == {pre_caption(caption) for caption in record.captions}
        else:
            record.check(TaskKind.parse("tv-normalqa"))
            assert len(record.pairs) == len(annotation["question"])
