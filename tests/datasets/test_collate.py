"""Samples of different lengths and modalities to one batch."""

from __future__ import annotations

import pickle

import pytest
import torch

from chatbridge.common.batch import IGNORE, TEXT
from chatbridge.conversation import Dialogue, MediaSource, PromptFormat, tokenize
from chatbridge.datasets.collate import Collator, Example

QUERIES = {"image": 3, "audio": 2, "thermal": 2}
SHAPES = {"image": (1, 3, 4, 4), "audio": (2, 8, 4), "thermal": (1, 1, 2, 2)}


def example(tokenizer, name, sources, answer, fill=0.0):
    segments = PromptFormat().segments(Dialogue.about(sources, [("what?", answer)]))
    media = {}
    for source in sources:
        media.setdefault(source.modality, []).extend(
            torch.full(SHAPES[source.modality], fill + i) for i in range(source.count)
        )
    return Example(tokenize(name, segments, tokenizer, QUERIES), media)


@pytest.fixture
def examples(tokenizer):
    return [
        example(tokenizer, "a", [MediaSource("image"), MediaSource("audio")], "yes", 1.0),
        example(tokenizer, "b", [], "no"),
        example(tokenizer, "c", [MediaSource("thermal"), MediaSource("image", 2)], "a dog in the park", 5.0),
    ]


@pytest.mark.parametrize("padding", ["right", "left"])
def test_padding(tokenizer, examples, padding):
    batch = Collator.of(tokenizer, padding)(examples, "mixed")
    length = 1 + max(len(e.tokens) for e in examples)
    assert batch.input_ids_BL.shape == (3, length)
    for row, e in enumerate(examples):
        real = batch.attention_mask_BL[row].bool()
        assert batch.input_ids_BL[row][real].tolist() == [tokenizer.bos_id, *e.tokens.input_ids]
        assert batch.labels_BL[row][real].tolist() == [IGNORE, *e.tokens.labels]
        assert (batch.input_ids_BL[row][~real] == tokenizer.pad_id).all()
        assert (batch.labels_BL[row][~real] == IGNORE).all()
        assert (batch.slots_BL[row][~real] == TEXT).all()
        edge = real[0] if padding == "right" else real[-1]
        assert bool(edge)
    assert batch.ids == ["a", "b", "c"]
    assert batch.dataset == "mixed"
    assert batch.position_ids_BL is None


def test_media_in_reading_order(tokenizer, examples):
    batch = Collator.of(tokenizer)(examples)
    assert batch.modalities == ["audio", "image", "thermal"]
    assert batch.media["image"].shape == (3, *SHAPES["image"])
    assert batch.media["image"][:, 0, 0, 0, 0].tolist() == [1.0, 5.0, 6.0]
    for modality, queries in QUERIES.items():
        assert int(batch.slot_mask_BL(modality).sum()) == queries * batch.media[modality].shape[0]
    assert batch.slot_mask_BL("image").sum(1).tolist() == [3, 0, 6]


def test_a_model_without_bos(tokenizer, examples):
    batch = Collator(None, tokenizer.pad_id, "left")(examples)
    assert batch.input_ids_BL.shape[1] == max(len(e.tokens) for e in examples)


def test_text_alone(tokenizer, examples):
    batch = Collator.of(tokenizer)([examples[1]])
    assert batch.media == {}
    assert (batch.slots_BL == TEXT).all()


def test_mismatches_are_refused_with_both_counts(tokenizer, examples):
    examples[2].media["image"].pop()
    with pytest.raises(ValueError, match="sample 'c' has slots for 2 media of 'image', but 1 were loaded"):
        Collator.of(tokenizer)(examples)
    examples[1].media["audio"] = [torch.zeros(SHAPES["audio"])]
    with pytest.raises(ValueError, match="sample 'b' has slots for 0 media of 'audio', but 1 were loaded"):
        Collator.of(tokenizer)(examples[:2])


def test_shapes_must_agree(tokenizer, examples):
    examples[2].media["image"][0] = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="'image' differ in shape.*a, b, c"):
        Collator.of(tokenizer)(examples)


def test_bad_arguments(tokenizer):
    with pytest.raises(ValueError, match="at least one"):
        Collator.of(tokenizer)([])
    with pytest.raises(ValueError, match="middle"):
        Collator.of(tokenizer, "middle")


def test_pickles(tokenizer, examples):
    copy = pickle.loads(pickle.dumps(Collator.of(tokenizer, "left")))
    assert torch.equal(copy(examples).labels_BL, Collator.of(tokenizer, "left")(examples).labels_BL)
