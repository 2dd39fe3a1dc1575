"""From strings to the batch: ids, masks and targets of stages 1, 2 and 3, without a model.

The golden cases keep masks, targets and the embeddings that go into the language model; looking our ids up in its
table shows that the unsupervised ones are right, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from chatbridge.common.batch import IGNORE, TEXT
from chatbridge.common.registry import TASKS
from chatbridge.conversation.dialogue import MediaSource
from chatbridge.conversation.prompt import PromptFormat, caption_segments
from chatbridge.conversation.segments import Media
from chatbridge.conversation.tokens import tokenize
from chatbridge.datasets.collate import Collator, Example
from chatbridge.tasks.base import Rendered
from tests.variants import built


@pytest.fixture(scope="module")
def queries(golden):
    weights = golden("chatbridge_weights").weights
    image, audio = (weights[f"{name}_query_tokens"].shape[1] for name in ("image", "audio"))
    return {"image": image, "video": image, "audio": audio}


def slots_of(case):
    """The media of one sample, in the order of its placeholders; stage 3 shows several images in one slot."""
    task = case.info["text_inputs"]["task"].split("-")[0]
    frames = case.inputs["image"].shape[1] if "image" in case.inputs else 0
    visual = [Media("image", frames if case.info["config"]["stage"] == 3 else 1)]
    return {"ti": visual, "tv": visual, "ta": [Media("audio")], "tva": [*visual, Media("audio")], "tia": visual}[task]


@dataclass(frozen=True)
class Place:
    """Where a medium stands in a sample, BOS not counted and nothing cut."""

    modality: str
    start: int
    end: int

    def kept(self, limit):
        """Positions of it among the first `limit`."""
        return max(0, min(self.end, limit) - self.start)


def placed(case, conversation, tokenizer, queries):
    """The places of a conversation's media by the original's rule: each text between them is tokenised alone."""
    places, at = [], 0
    for text, slot in zip(conversation.split("<query>"), slots_of(case), strict=False):
        at += len(tokenizer.encode(text))
        places.append(Place(slot.modality, at, at + slot.count * queries[slot.modality]))
        at = places[-1].end
    return places


def length_of(case, conversation, tokenizer, queries):
    """Positions of a conversation, BOS not counted and nothing cut."""
    rest = conversation.rsplit("<query>", 1)[-1]
    return placed(case, conversation, tokenizer, queries)[-1].end + len(tokenizer.encode(rest))


def is_cut(case, tokenizer, queries):
    """Whether the limit leaves something out of one of the samples."""
    config, text = case.info["config"], case.info["text_inputs"]
    if config["stage"] == 1:
        lengths = [len(tokenizer.encode(caption + config["end_sym"])) for caption in text["text_input"]]
    else:
        lengths = [length_of(case, conversation, tokenizer, queries) for conversation in text["conversation"]]
    return max(lengths) > config["max_txt_len"]


def batch_of(case, tokenizer, queries, compat, collator=None):
    """The case's texts, cut and collated by the task of its stage."""
    config, text = case.info["config"], case.info["text_inputs"]
    name = "alignment" if config["stage"] == 1 else "instruction"
    task = built(TASKS, name, compat, max_txt_len=config["max_txt_len"])
    slots = slots_of(case)
    examples = []
    if config["stage"] == 1:
        sources = [MediaSource(slot.modality) for slot in slots]
        pieces = [caption_segments(sources, caption, config["end_sym"]) for caption in text["text_input"]]
    else:
        pieces = [PromptFormat().parse(conversation, slots) for conversation in text["conversation"]]
    for index, segments in enumerate(pieces):
        tokens = task.tokenize(Rendered(str(index), segments), tokenizer, queries)
        media = {slot.modality: [torch.zeros(1)] * slot.count for slot in slots}
        examples.append(Example(tokens, media))
    return (collator or task.collator(tokenizer))(examples)


@pytest.mark.golden("chatbridge_s[123]_*")
def test_masks_and_targets(case, tokenizer, queries):
    padding = "right" if case.info["config"]["stage"] == 1 else "left"
    batch = batch_of(case, tokenizer, queries, "original")
    assert torch.equal(batch.attention_mask_BL, case.outputs["attention_mask"])
    assert torch.equal(batch.labels_BL, case.outputs["targets"])
    for index in range(len(batch.ids)):
        for modality in {slot.modality for slot in slots_of(case)}:
            if case.info["config"]["stage"] == 1:  # where the limit counts text alone
                expected = sum(slot.count * queries[modality] for slot in slots_of(case) if slot.modality == modality)
            else:
                places = placed(case, case.info["text_inputs"]["conversation"][index], tokenizer, queries)
                limit = case.info["config"]["max_txt_len"]
                expected = sum(place.kept(limit) for place in places if place.modality == modality)
            assert int(batch.slot_mask_BL(modality)[index].sum()) == expected
    if padding == "left":
        assert torch.equal(batch.position_ids_BL, torch.arange(batch.input_ids_BL.shape[1]).expand_as(batch.labels_BL))


@pytest.mark.golden("chatbridge_s[123]_*")
def test_every_text_id(case, golden, tokenizer, queries):
    padding = "right" if case.info["config"]["stage"] == 1 else "left"
    batch = batch_of(case, tokenizer, queries, "original")
    table = golden("chatbridge_weights").weights["llama_model.model.embed_tokens.weight"]
    text = batch.slots_BL == TEXT
    if padding == "left":  # there the original pads with zero vectors, which no id stands for; BOS is a real one
        text[:, 1:] &= batch.attention_mask_BL[:, 1:] == 1
    torch.testing.assert_close(table[batch.input_ids_BL[text]], case.outputs["inputs_embeds"][text], atol=1e-5, rtol=0)


@pytest.mark.golden("chatbridge_s[123]_*")
def test_default_keeps_labels_and_shows_bos(case, tokenizer, queries):
    """By default, BOS is visible, padding is on the right, and no sample loses every label."""
    try:
        batch = batch_of(case, tokenizer, queries, "default")
    except ValueError as error:
        assert "does not fit" in str(error)
        return
    assert (batch.input_ids_BL[:, 0] == tokenizer.bos_id).all()
    assert (batch.attention_mask_BL[:, 0] == 1).all()
    assert (batch.attention_mask_BL.diff(dim=1) <= 0).all()
    labels = case.outputs["targets"]
    if not is_cut(case, tokenizer, queries):
        for ours, theirs in zip(batch.labels_BL, labels, strict=True):
            assert ours[ours != IGNORE].tolist() == theirs[theirs != IGNORE].tolist()
    assert ((batch.labels_BL != IGNORE).sum(1) > 0).all()


def test_segment_ids_of_a_chat_prompt(golden_json, tokenizer):
    case = golden_json("chatbridge_generate")
    prompt = case["chat_prompt"]
    slots = [Media("video"), Media("audio")]
    segments = PromptFormat().parse(prompt, slots, "<ImageHere>")
    ids = [tokenizer.encode(piece.text) for piece in segments if not isinstance(piece, Media)]
    ids[0] = [tokenizer.bos_id, *ids[0]]
    assert ids == case["chat_segment_ids"]
    assert not any(getattr(piece, "supervised", False) for piece in segments)


def test_left_padded_prompts(golden, tokenizer, queries):
    """Prompts to continue: padded on the left, the mask the original's (which puts no BOS there)."""
    case = golden("chatbridge_generate")
    slots = [Media("video"), Media("audio")]
    media = {"video": [torch.zeros(1)], "audio": [torch.zeros(1)]}
    examples = []
    for index, prompt in enumerate(case.info["batch_prompts"]):
        tokens = tokenize(str(index), PromptFormat().parse(prompt, slots), tokenizer, queries)
        examples.append(Example(tokens, media))
    batch = Collator(None, tokenizer.pad_id, "left")(examples)
    assert torch.equal(batch.attention_mask_BL, case.outputs["batch_mask"])
    assert (batch.labels_BL == IGNORE).all()


def test_empty_text_beside_a_slot(golden_json, tokenizer, queries):
    """The original fails when two media stand side by side or first of all; here that is a dialogue like any other."""
    for result in golden_json("chatbridge_edge_cases")["results"]:
        text = result["conversation"]
        slots = [Media("image")] * text.count("<query>")
        sample = tokenize("edge", PromptFormat().parse(text, slots), tokenizer, queries)
        assert [slot.length for slot in sample.slots] == [queries["image"]] * len(slots)
        assert any(label != IGNORE for label in sample.labels)
