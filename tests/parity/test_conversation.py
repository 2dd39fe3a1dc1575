"""The chat: prompts, uploads, answers and stop rules."""

from __future__ import annotations

import pytest

from chatbridge.conversation.dialogue import ASSISTANT, HUMAN, Dialogue, MediaSource, Turn
from chatbridge.conversation.prompt import PromptFormat
from chatbridge.conversation.segments import Media, to_text
from chatbridge.conversation.stop import clean_answer
from tests.parity import original_chat as original

UPLOADS = {
    "image": ["image"],
    "audio": ["audio"],
    "video": ["video", "audio"],
    "onlyvideo": ["video"],
    "imageaudio": ["image", "audio"],
}
"""Upload kinds of the original's page -> what they show."""

PUSHED = {"image": "img", "video": "img", "audio": "aud"}


@pytest.fixture(scope="module")
def case(golden_json):
    return golden_json("conversation")


def test_prompts(case):
    for prompt in case["prompts"]:
        sep2 = prompt["sep2"] if prompt["sep_style"] == "TWO" else None
        text = original.prompt_text(prompt["messages"], prompt["system"], prompt["sep"], sep2)
        assert text == prompt["prompt"], prompt["label"]
        assert original.chat_pairs(prompt["messages"], prompt["offset"]) == prompt["gradio"], prompt["label"]


def test_default_prompts_are_those_of_training(case):
    """By default the history is written as in training: no space in front of an answer, a line break behind it."""
    for prompt in case["prompts"]:
        messages = prompt["messages"]
        plain = prompt["system"] == "" and prompt["sep"] == "###" and prompt["sep_style"] == "SINGLE"
        if not plain or not messages or messages[-1][0] != "Assistant":
            continue
        turns, modality = [], "image"
        for role, text in messages:
            if role == "Assistant":
                turns += [Turn(ASSISTANT, text)] if text is not None else []
            elif original.PLACEHOLDER in (text or ""):
                assert text == f"Given following {modality}: {original.PLACEHOLDER}."
                turns.append(Turn(HUMAN, "", (MediaSource(modality),)))
            else:
                turns.append(Turn(HUMAN, text))
        ours = PromptFormat().text(Dialogue(tuple(turns)), original.PLACEHOLDER)
        theirs = prompt["prompt"]
        for role, text in messages:
            if role == "Assistant" and text:
                theirs = theirs.replace(f"###Assistant: {text}###", f"###Assistant:{text}\n###")
        assert ours == theirs, prompt["label"]


def test_uploads(case):
    for upload in case["uploads"]:
        sources = [MediaSource(modality) for modality in UPLOADS[upload["type"]]]
        segments = original.FORMAT.introduction(sources)
        text = to_text(segments, original.PLACEHOLDER)
        assert [["Human", text]] == upload["messages"], upload["type"]
        slots = [PUSHED[s.modality] for s in segments if isinstance(s, Media)]
        assert slots == [kind for kind, _ in upload["pushed"]]
        default = to_text(PromptFormat().introduction(sources), original.PLACEHOLDER)
        assert default == text.replace("Given the following", "Given following")


def test_answers(case):
    for answer in case["answers"]:
        tokens = original.clean_ids(answer["output_ids"])
        assert tokens == answer["tokens"]
        decoded = answer["decoded_as"].replace("{ids}", str(tokens))
        assert original.clean_answer(decoded) == answer["answer"]
        if decoded.count("Assistant:") <= 1:
            assert clean_answer(decoded) == answer["answer"]
        expected = dict(answer["generate_kwargs"])
        _, kept, _ = expected.pop("inputs_embeds")
        assert original.kept_context(answer["context_len"], expected["max_new_tokens"]) == kept
        assert expected == original.SAMPLING


def test_stopping(case):
    for rule in case["stopping"]:
        assert original.stop_batch(rule["ids"]) == rule["stop"]
        if len(rule["ids"]) == 1:
            assert original.stops(rule["ids"][0]) == rule["stop"]
