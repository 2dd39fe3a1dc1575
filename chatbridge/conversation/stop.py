"""When an answer ends, and what of it is shown.

Rules look at one row of a batch at a time. They look at text, because in LLaMA's vocabulary the separator ``###`` is
one token or two depending on what stands before it; rules on ids exist for published settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from chatbridge.common.tokenizer import Tokenizer
from chatbridge.conversation.prompt import PromptFormat

LLAMA_SEPARATOR_IDS = ((835,), (2277, 29937))
"""The two spellings of ``###`` in LLaMA's vocabulary that the original stops on."""


class StopRule(Protocol):
    """Says whether a row is finished, from the ids generated for it so far."""

    def __call__(self, new_ids: Sequence[int]) -> bool: ...


class StopOnText:
    """Stop when one of `texts` has been written.

    Only the end of the row is decoded: a token carries at least one byte, so a stop text that was completed by the
    newest token lies within its last ``len(bytes)`` ids (a few more are taken for marks that decode to nothing).
    """

    _MARGIN = 4

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer):
        if not texts or not all(texts):
            raise ValueError("a text stop rule needs at least one text, and no empty ones")
        self.texts = tuple(texts)
        self.tokenizer = tokenizer
        self.window = max(len(text.encode("utf-8")) for text in texts) + self._MARGIN

    def __call__(self, new_ids: Sequence[int]) -> bool:
        end = self.tokenizer.decode(list(new_ids)[-self.window :], skip_special=False)
        return any(text in end for text in self.texts)


class StopOnIds:
    """Stop when the row ends in one of these sequences of ids."""

    def __init__(self, sequences: Sequence[Sequence[int]] = LLAMA_SEPARATOR_IDS):
        self.sequences = [list(sequence) for sequence in sequences if len(sequence)]

    def __call__(self, new_ids: Sequence[int]) -> bool:
        ids = list(new_ids)
        return any(ids[-len(sequence) :] == sequence for sequence in self.sequences)


class StopOnAny:
    """Stop when any of several rules says so."""

    def __init__(self, *rules: StopRule):
        self.rules = rules

    def __call__(self, new_ids: Sequence[int]) -> bool:
        return any(rule(new_ids) for rule in self.rules)


def clean_answer(text: str, prompt: PromptFormat | None = None, stop: Sequence[str] = ()) -> str:
    """The answer in what a model wrote: up to the first stop text, without the tag of an answer, stripped.

    Args:
        text: decoded new tokens.
        prompt: gives the stop text and the tag; stop: further texts to cut at.
    """
    prompt = prompt or PromptFormat()
    for end in (*prompt.stop, *stop):
        text = text.split(end, 1)[0]
    return text.strip().removeprefix(answer_tag(prompt)).strip()


def answer_tag(prompt: PromptFormat) -> str:
    """The tag of an answer without the stop text in it, as a model may write it once more before it answers."""
    tag = prompt.assistant.strip()
    for end in prompt.stop:
        tag = tag.removeprefix(end).strip()
    return tag
