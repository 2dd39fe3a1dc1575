"""When an answer ends, row by row, on text."""

from __future__ import annotations

import pytest

from chatbridge.conversation import PromptFormat, StopOnText, clean_answer


def first_stop(rule, ids):
    return next((n for n in range(1, len(ids) + 1) if rule(ids[:n])), None)


@pytest.mark.parametrize("answer", ["a dog ###", "a dog\n###", "a dog.###", "###", "naïve 😀###"])
def test_stops_when_the_separator_is_complete_and_not_before(tokenizer, answer):
    ids = tokenizer.encode(answer + " Human: more")
    rule = StopOnText(PromptFormat().stop, tokenizer)
    complete = next(n for n in range(1, len(ids) + 1) if "###" in tokenizer.decode(ids[:n]))
    assert first_stop(rule, ids) == complete < len(ids)


def test_the_window_sees_stops_far_from_the_start(tokenizer):
    ids = tokenizer.encode("the river " * 50 + "###")
    assert first_stop(StopOnText(["###"], tokenizer), ids) == len(ids)


class Bytes:
    """The finest tokenizer there is: one id per byte, so that every stop text is split over several ids."""

    def decode(self, ids, skip_special=True):
        return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("stop", ["###", "\n", "😀", "</answer>"])
def test_stops_split_over_many_tokens(stop):
    ids = list(("what is it? " * 5 + stop).encode())
    assert first_stop(StopOnText([stop], Bytes()), ids + ids) == len(ids)


def test_does_not_stop_on_less(tokenizer):
    assert first_stop(StopOnText(["###"], tokenizer), tokenizer.encode("a # and ## again")) is None


def test_stops_on_special_tokens(tokenizer):
    rule = StopOnText(["</s>"], tokenizer)
    assert rule([*tokenizer.encode("a dog"), tokenizer.eos_id])
    assert not rule(tokenizer.encode("a dog"))


def test_empty_stop_texts_are_refused(tokenizer):
    for texts in ([], [""]):
        with pytest.raises(ValueError, match="at least one"):
            StopOnText(texts, tokenizer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" a dog\n### Human: and", "a dog"),
        ("Assistant: a dog", "a dog"),
        ("the Assistant: role", "the Assistant: role"),
        ("###", ""),
        ("two\nlines", "two\nlines"),
    ],
)
def test_cleaning(text, expected):
    assert clean_answer(text) == expected


def test_cleaning_with_further_stops_and_formats():
    assert clean_answer("two\nlines", stop=["\n"]) == "two"
    other = PromptFormat(human="USER: ", assistant=" ASSISTANT:", answer_end="</s>")
    assert clean_answer("ASSISTANT: ###</s>USER:", other) == "###"
