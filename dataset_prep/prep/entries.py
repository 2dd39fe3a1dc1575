"""Entries of an annotation file with everything that is wrong with them, for `shards` and `validate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatbridge.common.registry import nearest
from chatbridge.datasets import Record, TaskKind
from chatbridge.datasets.annotations import checked_entry
from chatbridge.datasets.kinds import CONVERSATION, FIRST_PAIR
from chatbridge.processors.text import pre_caption
from dataset_prep.prep.items import MALFORMED, UNSAFE

SHARED = ("video_id", "image_id")


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


def read_entry(entry: Any, index: int, kinds: Sequence[TaskKind]) -> tuple[Record | None, list[str]]:
    """The record of an entry, and what is wrong with it in words; the record is None when it cannot be made.

    Finds what training refuses, and texts that are there but empty.
    """
    record, faults = checked_entry(entry, index, kinds)
    return record, faults + (empty_texts(record, kinds) if record is not None else [])


def fault_reason(fault: str, otherwise: str = MALFORMED) -> str:
    """The reason that a sample with a fault is counted under."""
    return UNSAFE if "below its media folder" in fault or "out of its media folder" in fault else otherwise


def empty_texts(record: Record, kinds: Sequence[TaskKind]) -> list[str]:
    """Texts from which nothing is learnt. Training does not refuse them: it may never draw them."""
    problems = []
    if any(kind.kind == "cap" for kind in kinds):
        empty = [text for text in record.captions if not pre_caption(text).strip()]
        if empty:
            problems.append(f"caption {empty[0]!r} has no words once it is cleaned")
    if any(kind.kind in (*FIRST_PAIR, CONVERSATION) for kind in kinds):
        blank = [place for place, (_, text) in enumerate(record.turns) if not text.strip()]
        problems += [f"conversations[{place}].value is empty" for place in blank]
    return problems
