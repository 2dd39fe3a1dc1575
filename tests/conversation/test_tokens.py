"""Token ids, labels and slots; and what is cut when a sample is too long."""

from __future__ import annotations

import random

import pytest

from chatbridge.common.batch import IGNORE
from chatbridge.conversation import Dialogue, MediaSource, PromptFormat, Text, caption_segments, tokenize

QUERIES = {"image": 8, "video": 8, "audio": 4, "thermal": 2}


def labelled(sample):
    return [label for label in sample.labels if label != IGNORE]


def media_positions(sample):
    return [(slot.modality, slot.length, slot.count) for slot in sample.slots]


def joint(exchanges, chat=False):
    return PromptFormat().segments(Dialogue.about([MediaSource("video"), MediaSource("audio")], exchanges, chat))


def test_everything_in_its_place(tokenizer):
    segments = joint([("what is it?", "a dog")])
    sample = tokenize("s", segments, tokenizer, QUERIES)
    ids, labels = [], []
    for piece in segments:
        if isinstance(piece, Text):
            own = tokenizer.encode(piece.text)
            ids += own
            labels += own if piece.supervised else [IGNORE] * len(own)
        else:
            ids += [0] * QUERIES[piece.modality]
            labels += [IGNORE] * QUERIES[piece.modality]
    assert (sample.input_ids, sample.labels, sample.cut) == (ids, labels, 0)
    assert media_positions(sample) == [("video", 8, 1), ("audio", 4, 1)]
    for slot in sample.slots:
        assert sample.input_ids[slot.start : slot.start + slot.length] == [0] * slot.length


def test_several_media_in_one_slot(tokenizer):
    sample = tokenize("s", caption_segments([MediaSource("image", 3)], "dogs"), tokenizer, QUERIES)
    assert media_positions(sample) == [("image", 24, 3)]


def test_unknown_modality_names_the_sample(tokenizer):
    with pytest.raises(ValueError, match=r"sample 'x7' shows 'depth'.*thermal"):
        tokenize("x7", caption_segments([MediaSource("depth")], "a"), tokenizer, QUERIES)


def test_a_long_answer_loses_its_tail(tokenizer):
    full = tokenize("s", joint([("what is it?", "the small bird looks at the river " * 20)]), tokenizer, QUERIES)
    sample = tokenize("s", joint([("what is it?", "the small bird looks at the river " * 20)]), tokenizer, QUERIES, 80)
    assert len(sample) == 80
    assert sample.input_ids == full.input_ids[:80]
    assert sample.cut == len(full) - 80
    assert labelled(sample) == labelled(full)[: len(labelled(sample))] != []


def test_a_long_question_loses_its_middle_and_the_answer_stays_whole(tokenizer):
    segments = joint([("is it " + "a dog or " * 60 + "at night?", "yes, it is.")])
    full = tokenize("s", segments, tokenizer, QUERIES)
    sample = tokenize("s", segments, tokenizer, QUERIES, 80)
    assert len(sample) == 80
    assert labelled(sample) == labelled(full) == tokenizer.encode("yes, it is.\n###")
    text = tokenizer.decode(sample.input_ids[sample.slots[-1].start + 4 :])
    assert text.startswith(".###Human: is it a dog")
    assert "night?###Assistant:" in text


def test_training_drops_the_latest_exchanges(tokenizer):
    exchanges = [(f"what is in the park {i}?", "the dog looks at the river") for i in range(6)]
    full = tokenize("s", joint(exchanges, chat=True), tokenizer, QUERIES)
    short = tokenize("s", joint(exchanges, chat=True), tokenizer, QUERIES, len(full) // 2)
    kept = [len(tokenize("s", joint(exchanges[:n], chat=True), tokenizer, QUERIES)) for n in range(1, 7)]
    assert len(short) in kept
    assert len(short) <= len(full) // 2
    assert short.input_ids == full.input_ids[: len(short)]


def test_generation_keeps_the_first_exchange_and_the_question(tokenizer):
    exchanges = [(f"what is in the park {i}?", "the dog looks at the river") for i in range(6)]
    dialogue = Dialogue.about([MediaSource("image")], [*exchanges, ("and at night?", None)], chat=True)
    full = tokenize("s", PromptFormat().segments(dialogue), tokenizer, QUERIES)
    short = tokenize("s", PromptFormat().segments(dialogue), tokenizer, QUERIES, len(full) - 5)
    text = tokenizer.decode(short.input_ids[short.slots[-1].start + 8 :])
    assert "park 0?" in text
    assert "park 1?" not in text
    assert "park 5?" in text
    assert text.endswith("and at night?###Assistant:")
    assert len(short) <= len(full) - 5


def test_stage_1_counts_text_alone(tokenizer):
    segments = caption_segments([MediaSource("image")], "the small bird looks at a tall tree and the river")
    full = tokenize("s", segments, tokenizer, QUERIES)
    sample = tokenize("s", segments, tokenizer, QUERIES, 5, budget="text")
    assert sample.input_ids == full.input_ids[: 8 + 5]
    assert len(labelled(sample)) == 5
    with pytest.raises(ValueError, match="budget"):
        tokenize("s", segments, tokenizer, QUERIES, 5, budget="words")


@pytest.mark.parametrize("limit", [5, 12, 13])
def test_what_cannot_fit_is_refused_with_its_id(tokenizer, limit):
    segments = joint([("what is it?", "a dog")])
    with pytest.raises(ValueError, match=rf"sample 'clip 9' does not fit into {limit} positions"):
        tokenize("clip 9", segments, tokenizer, QUERIES, limit)


def test_truncation_never_removes_media_or_every_label(tokenizer):
    """Many random dialogues and limits: each is refused, or keeps all slots, a label, and the limit."""
    rng = random.Random(0)
    words = ["the", "small", "bird", "looks", "at", "a", "tall", "tree", "river", "night", "guitar", "😀"]
    outcomes = {"fits": 0, "refused": 0}
    for trial in range(400):
        lengths = [(rng.choice([1, 5, 60]), rng.choice([1, 5, 60])) for _ in range(rng.randint(1, 4))]
        exchanges = [(" ".join(rng.choices(words, k=q)), " ".join(rng.choices(words, k=a))) for q, a in lengths]
        sources = [MediaSource(m) for m in rng.sample(sorted(QUERIES), rng.randint(0, 3))]
        segments = PromptFormat().segments(Dialogue.about(sources, exchanges, rng.random() < 0.5))
        limit = rng.randint(1, 200)
        try:
            sample = tokenize(str(trial), segments, tokenizer, QUERIES, limit)
        except ValueError as error:
            assert f"'{trial}'" in str(error)
            outcomes["refused"] += 1
            continue
        outcomes["fits"] += 1
        assert len(sample) <= limit
        assert sorted(slot.modality for slot in sample.slots) == sorted(source.modality for source in sources)
        assert all(slot.length == QUERIES[slot.modality] for slot in sample.slots)
        assert labelled(sample)
        assert len(sample.labels) == len(sample.input_ids)
        assert all(a == b for a, b in zip(sample.input_ids, sample.labels, strict=True) if b != IGNORE)
        full = tokenize(str(trial), segments, tokenizer, QUERIES)
        assert sample.cut == len(full) - len(sample)
    assert min(outcomes.values()) > 20
