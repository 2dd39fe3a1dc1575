"""Captions as corpora have them -> texts that teach something."""

from __future__ import annotations

import re
from typing import Any

from chatbridge.common.documents import repaired
from chatbridge.datasets.records import is_blank
from chatbridge.processors.text import pre_caption

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\u200b\ufeff\ufffe\uffff]")


def clean(text: str) -> str:
    """One line without control characters, spaces collapsed; wording, case and punctuation stay."""
    return " ".join(_CONTROL.sub("", repaired(text)).split())


def captions(value: Any) -> list[str]:
    """The captions of a string or a list, cleaned, each once; those in which nothing is left are gone.

    A caption of punctuation alone counts as empty: stage 1's cleaning would leave nothing of it. Null and NaN, as
    tables have them, are no captions; the word "nan" is one.

    Raises:
        ValueError: for anything but a string, a number, or a list of them.
    """
    found = []
    for text in value if isinstance(value, list) else [value]:
        if text is None or isinstance(text, float) and is_blank(text):
            continue
        if isinstance(text, bool) or not isinstance(text, (str, int, float)):
            raise ValueError(f"a caption must be text, not {type(text).__name__}")
        text = clean(str(text))
        if text and pre_caption(text).strip() and text not in found:
            found.append(text)
    return found


def one_or_list(texts: list[str]) -> str | list[str]:
    """The only text, or the list of several: both are forms that annotation files may have."""
    return texts[0] if len(texts) == 1 else texts
