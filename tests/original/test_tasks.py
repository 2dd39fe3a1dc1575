"""What the published code does to samples, quirk by quirk (all of it against its numbers: `tests/parity/`)."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

from chatbridge.common.batch import IGNORE, TEXT
from chatbridge.common.registry import TASKS
from chatbridge.conversation import Dialogue, MediaSource, PromptFormat, caption_segments, tokenize
from chatbridge.conversation.templates import Templates
from chatbridge.datasets.annotations import AnnotationFile
from chatbridge.datasets.collate import Example
from chatbridge.datasets.kinds import TaskKind
from chatbridge.original.tasks import OriginalCollator, OriginalDialogueMaker, clean_tags, cut_at
from chatbridge.tasks.base import Rendered
from tests.variants import MODES, built

ROWS = {"image": 8, "video": 8, "audio": 4}


def labelled(sample):
    return [label for label in sample.labels if label != IGNORE]


def test_annotations(tmp_path):
    file = tmp_path / "a.json"
    entries = [{"image_id": "1", "question": "q", "answer": ["x"]}, {"image_id": "2"}, {"image_id": "3", "desc": "d"}]
    file.write_text(json.dumps(entries))
    task = built(TASKS, "instruction", "original")
    records = pickle.loads(pickle.dumps(AnnotationFile(file, [TaskKind.parse("ti-cap")], parse=task.parse)))
    assert records[0].pairs == (("q", ("['x']",)),)
    assert [record.captions for record in records] == [("[None]",), ("[None]",), ("d",)]


def test_tags_stay_where_no_line_breaks():
    assert clean_tags("look <image> here") == "look <image> here"
    assert clean_tags("look\n<image>") == "look"


@pytest.mark.parametrize("kind", ["tia-cap", "thermal-conv", "ta-shortqa"])
def test_kinds_that_it_has_no_words_for(kind):
    with pytest.raises(ValueError, match=rf"the original .*'{kind}'"):
        OriginalDialogueMaker(TaskKind.parse(kind, ["thermal", "image", "audio"]), Templates.load())


def test_truncation_takes_labels_and_parts_of_media(tokenizer):
    exchange = ("is it " + "a dog or " * 60 + "at night?", "yes, it is.")
    segments = PromptFormat().segments(Dialogue.about([MediaSource("video"), MediaSource("audio")], [exchange]))
    sample = tokenize("s", segments, tokenizer, ROWS, 80, fit=cut_at)
    assert len(sample) == 80
    assert labelled(sample) == []
    inside = tokenize("s", segments, tokenizer, ROWS, sample.slots[-1].start + 2, fit=cut_at)
    assert [slot.length for slot in inside.slots[:-1]] == [slot.length for slot in sample.slots[:-1]]
    assert inside.slots[-1].length == 2 < sample.slots[-1].length


@pytest.mark.parametrize("compat", MODES)
def test_labels_equal_to_padding_are_ignored(tokenizer, compat):
    segments = caption_segments([MediaSource("image")], "a dog", end_symbol="</s>")
    sample = built(TASKS, "alignment", compat).tokenize(Rendered("s", segments), tokenizer, ROWS)
    assert (tokenizer.eos_id in labelled(sample)) == (compat == "default")


def test_left_padding(tokenizer):
    segments = [caption_segments([], words) for words in ("a dog", "a small dog looks", "a small dog looks at it")]
    examples = [Example(tokenize("s", pieces, tokenizer, {})) for pieces in segments]
    collator = pickle.loads(pickle.dumps(built(TASKS, "instruction", "original").collator(tokenizer)))
    batch = collator(examples)
    assert (batch.input_ids_BL[:, 0] == tokenizer.bos_id).all()
    assert torch.equal(batch.attention_mask_BL[:, 0], batch.attention_mask_BL[:, 1])
    assert batch.attention_mask_BL[:, 0].tolist() == [0, 0, 1]
    assert batch.position_ids_BL.tolist() == [list(range(batch.input_ids_BL.shape[1]))] * 3
    assert (batch.slots_BL[:, 0] == TEXT).all()
    without = OriginalCollator(None, tokenizer.pad_id, "left")(examples)
    assert without.input_ids_BL.shape[1] == max(len(example.tokens) for example in examples)
    with pytest.raises(ValueError, match="cannot be packed"):
        OriginalCollator(tokenizer.bos_id, tokenizer.pad_id, "left", pack=100)
