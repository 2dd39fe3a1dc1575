"""When an answer ends, and what of it is shown.

A rule looks at one row of a batch, and at its text: in LLaMA's vocabulary the separator ``###`` is one token or two,
depending on what stands before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from chatbridge.common.tokenizer import Tokenizer
from chatbridge.conversation.prompt import PromptFormat


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
