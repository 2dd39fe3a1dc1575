"""The original demo's chat, to the letter.

It differs from what the model was trained on: "Given the following audio", a space between the assistant's tag and a
past answer, media cut away when the context is long, and a stop rule that looks at the first row of a batch only.
The default chat writes its history with `PromptFormat`, exactly as in training.
"""

from __future__ import annotations

from collections.abc import Sequence

from chatbridge.conversation.prompt import PromptFormat

LLAMA_SEPARATOR_IDS = ((835,), (2277, 29937))
"""The two spellings of ``###`` in LLaMA's vocabulary that the original stops on."""

PLACEHOLDER = "<ImageHere>"

SAMPLING = {
    "max_new_tokens": 300,
    "num_beams": 1,
    "do_sample": True,
    "min_length": 1,
    "top_p": 0.9,
    "repetition_penalty": 1.0,
    "length_penalty": 1,
    "temperature": 1.0,
}
"""Generation settings of the original demo."""

MAX_LENGTH = 2000
"""Positions that prompt and answer may take together in the original demo."""

FORMAT = PromptFormat(intros={"audio": "Given the following audio: {audio}."})
"""Introductions as the original chat writes them; those of the other modality sets equal the training ones."""


def prompt_text(
    messages: Sequence[tuple[str, str | None]], system: str = "", sep: str = "###", sep2: str | None = None
) -> str:
    """A conversation as one string: the separator behind the system text and behind every message.

    Args:
        messages: (role tag, text); an empty or missing text leaves the turn open.
        sep, sep2: the separator; with `sep2`, it closes every second message.
    """
    ends = (sep, sep if sep2 is None else sep2)
    text = system + sep
    for index, (role, message) in enumerate(messages):
        text += f"{role}: {message}{ends[index % 2]}" if message else f"{role}:"
    return text


def chat_pairs(messages: Sequence[tuple[str, str | None]], offset: int = 0) -> list[list[str | None]]:
    """Messages from `offset` on, two by two, as a chat window lists them (the second is None while it is missing)."""
    texts = [message for _, message in messages[offset:]]
    return [[*texts[i : i + 2], None][:2] for i in range(0, len(texts), 2)]


def clean_ids(ids: Sequence[int]) -> list[int]:
    """Generated ids without one leading id 0 and one leading id 1 behind it."""
    ids = list(ids)
    for leading in (0, 1):
        if ids and ids[0] == leading:
            ids = ids[1:]
    return ids


def clean_answer(text: str) -> str:
    """What stands between the last ``Assistant:`` and the first ``###``."""
    return text.split("###")[0].split("Assistant:")[-1].strip()


def kept_context(length: int, max_new_tokens: int = 300, max_length: int = MAX_LENGTH) -> int:
    """How many positions of a prompt are kept (the last ones, whatever they hold)."""
    return min(length, max(0, max_length - max_new_tokens))


def stops(ids: Sequence[int]) -> bool:
    """Whether a row ends in one of the separator's spellings."""
    return any(tuple(ids[-len(end) :]) == end for end in LLAMA_SEPARATOR_IDS)


def stop_batch(rows: Sequence[Sequence[int]]) -> bool:
    """Whether the whole batch stops: as soon as its first row does."""
    return stops(rows[0])
