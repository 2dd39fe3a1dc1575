"""Captions as corpora have them -> texts that teach something."""

from __future__ import annotations

import re
from typing import Any

from chatbridge.processors.text import pre_caption

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\u200b\ufeff\ufffe\uffff]")


def clean(text: str) -> str:
    """One line without control characters, spaces collapsed; wording, case and punctuation stay."""
    text = text.encode("utf-8", "replace").decode("utf-8")  # halves of surrogate pairs cannot be written to a file
    return " ".join(_CONTROL.sub("", text).split())


def captions(value: Any) -> list[str]:
    """The captions of a string or a list, cleaned, each once; those in which nothing is left are gone.

    A caption of punctuation alone counts as empty: stage 1's cleaning would leave nothing of it.

    Raises:
        ValueError: for anything but a string, a number, or a list of them.
    """
    if value is None:
        return []
    found = []
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, bool) or not isinstance(text, (str, int, float)):
            raise ValueError(f"a caption must be text, not {type(text).__name__}")
        text = clean(str(text))
        if text and pre_caption(text).strip() and text not in found:
            found.append(text)
    return found


def one_or_list(texts: list[str]) -> str | list[str]:
    """The only text, or the list of several: both are forms that annotation files may have."""
    return texts[0] if len(texts) == 1 else texts
