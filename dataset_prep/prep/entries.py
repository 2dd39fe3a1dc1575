"""Entries of an annotation file with everything that is wrong with them, for `shards` and `validate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chatbridge.common.registry import nearest
from chatbridge.datasets import Record, TaskKind
from chatbridge.processors.text import pre_caption

SHARED = ("video_id", "image_id")
_MISSPELT = {"captions": "caption", "questions": "question", "answers": "answer", "conversation": "conversations"}


def media_arguments(given: Sequence[str], kinds: Sequence[TaskKind]) -> dict[str, str]:
    """Modality -> folder, from ``--media DIR`` (where the kind shows one modality) or ``--media image=DIR ...``.

    Raises:
        ValueError: a modality without a folder, or a folder without a modality.
    """
    shown = list(dict.fromkeys(m for kind in kinds for m in kind.modalities))
    folders = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if equals and name in shown:
            folders[name] = folder
        elif len(shown) == 1:
            folders[shown[0]] = text
        elif equals:
            raise ValueError(f"--media {text}: the kind shows no '{name}'; {nearest(name, shown)}")
        else:
            folders |= {modality: folders.get(modality, text) for modality in shown}
    lacking = [modality for modality in shown if modality not in folders]
    if lacking:
        raise ValueError(f"--media: no folder for '{lacking[0]}'; give --media {lacking[0]}=DIR")
    return folders


def read_entry(
    entry: Any, index: int, kinds: Sequence[TaskKind], answered: bool = True
) -> tuple[Record | None, list[str]]:
    """The record of an entry, and what is wrong with it in words; the record is None when it cannot be made.

    Finds more than the first mistake, and texts that are there but empty.
    """
    if not isinstance(entry, Mapping):
        return None, [f"an entry must be a JSON object, not {type(entry).__name__}"]
    problems = misnamed(entry, kinds)
    try:
        record = Record.parse(entry, index)
    except ValueError as error:
        return None, [*problems, str(error)]
    for kind in kinds:
        try:
            record.check(kind, answered)
        except ValueError as error:
            text = str(error)
            near = next((k for k, v in _MISSPELT.items() if k in entry and f"lacks {v}" in text), None)
            text += f" (it has '{near}': did you mean '{_MISSPELT[near]}'?)" if near else ""
            if text not in problems:
                problems.append(text)
    return record, problems + _empty_texts(record, kinds)


def misnamed(entry: Mapping[str, Any], kinds: Sequence[TaskKind]) -> list[str]:
    """Keys that should name files and hold something else: such files cannot even be looked for."""
    problems = []
    for key in dict.fromkeys([f"{m}_id" for kind in kinds for m in kind.modalities] + list(SHARED)):
        if key not in entry:
            continue
        values = entry[key] if isinstance(entry[key], list) else [entry[key]]
        wrong = [v for v in values if isinstance(v, bool) or not isinstance(v, (str, int))]
        if wrong:
            problems.append(f"'{key}' must be a file name, not {type(wrong[0]).__name__}")
        elif not values or any(not str(v).strip() for v in values):
            problems.append(f"'{key}' names no file")
    return problems


def _empty_texts(record: Record, kinds: Sequence[TaskKind]) -> list[str]:
    problems = []
    if any(kind.kind == "cap" for kind in kinds):
        empty = [text for text in record.captions if not pre_caption(text).strip()]
        if empty:
            problems.append(f"caption {empty[0]!r} has no words once it is cleaned")
    if any(kind.asks for kind in kinds) and any(not question.strip() for question, _ in record.pairs):
        problems.append("has an empty question")
    for place, (_, text) in enumerate(record.turns):
        if not text.strip():
            problems.append(f"conversations[{place}].value is empty")
    return problems
