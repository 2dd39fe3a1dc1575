"""One sample of a tar shard: its annotation entry, and which of its members are the media that the entry names."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chatbridge.common.documents import parse_json
from chatbridge.datasets.kinds import TaskKind
from chatbridge.datasets.records import Record, is_blank
from chatbridge.processors.base import MediaError


def annotation(
    where: str,
    members: Mapping[str, Any],
    kinds: Sequence[TaskKind],
    answered: bool = True,
    parse: Callable[[Any, int], Record] = Record.parse,
) -> Record:
    """The record of a sample, from its ``.json``, with its ``.txt`` as caption where that has none.

    Args:
        where: shard and key, for messages. members: ending -> bytes of its texts, and ``__key__``.
        kinds, answered, parse: as for `AnnotationFile`. What an entry says of files only chooses among members, so
            that nothing about it is refused.

    Raises:
        MediaError: no annotation, or a malformed one.
    """
    try:
        record = parse({"id": members["__key__"], **_entry(where, members)}, 0)
        for kind in kinds:
            record.check(kind, answered, files=False)
    except ValueError as error:
        raise MediaError(f"{where}.json", getattr(error, "reason", str(error))) from error
    return record


def _entry(where: str, members: Mapping[str, Any]) -> dict[str, Any]:
    entry: Any = {}
    if "json" in members:
        entry = parse_json(members["json"].decode("utf-8-sig", "surrogateescape"), f"{where}.json")
        if not isinstance(entry, dict):
            raise ValueError(f"an entry must be a JSON object, not {type(entry).__name__}")
    elif "txt" not in members:
        raise ValueError("is missing: a sample needs its annotation entry as .json, or a caption as .txt")
    entry = {name: value for name, value in entry.items() if not is_blank(value)}
    if "txt" in members and "caption" not in entry and "desc" not in entry:
        entry["caption"] = _plain(members["txt"])
    return entry


def _plain(text: bytes) -> str:
    """A text file's words, whatever it is encoded in; what is no text in that becomes U+FFFD."""
    utf_16 = text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return text.decode("utf-16" if utf_16 else "utf-8-sig", "replace").strip()


def members_of(
    where: str, record: Record, modality: str, members: Mapping[str, Any], endings: tuple[str, ...]
) -> list[str]:
    """The members that stand for the files of one modality; one, where the entry names none; none, where it has words.

    Raises:
        MediaError: a file without a member.
    """
    described = modality in record.descriptions and modality not in record.files
    names = () if described else record.files.get(modality) or record.shared or (members["__key__"],)
    chosen = choose_members(names, members, endings)
    if None in chosen:
        name = names[chosen.index(None)]
        raise MediaError(where, f"has no {modality} for '{name}' (looked for {' '.join(endings)})")
    return chosen


def choose_members(names: Sequence[str], members: Mapping[str, Any], endings: tuple[str, ...]) -> list[str | None]:
    """The member of a sample that stands for each file that its entry names, by ending; None where there is none left.

    That is the member of the very name (``0017.1.jpg``); for other names one with the same ending, else the next one
    that has one of `endings`: in their order, then 2.jpg before 10.jpg.
    """
    free = [ending for ending in members if f".{ending}".endswith(endings) and ending[:2] != "__"]
    if len(free) == len(names) == 1:
        return free
    ranks = {ending: next(i for i, wanted in enumerate(endings) if f".{ending}".endswith(wanted)) for ending in free}
    free.sort(key=lambda ending: (ranks[ending], len(ending), ending))
    stem = members["__key__"].rpartition("/")[2]
    by_name = {f"{stem}.{ending}".lower(): ending for ending in free}
    chosen = [by_name.pop(str(name).rpartition("/")[2].lower(), None) for name in names]
    free = [ending for ending in free if ending not in chosen]
    for number, name in enumerate(names):
        if chosen[number] is None and free:
            last = str(name).rpartition(".")[2].lower() if "." in str(name) else None
            chosen[number] = next((ending for ending in free if last and ending.endswith(last)), free[0])
            free.remove(chosen[number])
    return chosen
