"""Several captions of one medium -> one sample with a list: corpora repeat a file once per caption."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dataset_prep.prep.items import EMPTY, MALFORMED, Drop, Item
from dataset_prep.prep.texts import captions, one_or_list


@dataclass(frozen=True)
class Captioned:
    """One row of a caption corpus.

    Attributes:
        row: its number in the file; id: of the medium; names: file names to try.
        caption: a string, a list, or None; problem: what is wrong with the row, if anything.
    """

    row: int
    id: str
    names: tuple[str, ...]
    caption: Any
    problem: str = ""


def group(rows: Iterable[Captioned], modality: str, source: str) -> Iterator[Item | Drop]:
    """One sample per medium, in the order of its first row, with all its captions, each once.

    A row without any words is a Drop; the other captions of its medium stay.
    """
    found: dict[str, tuple[Captioned, list[str]]] = {}
    drops: list[Drop] = []
    for row in rows:
        where = f"{source}: row {row.row}"
        try:
            if row.problem:
                raise ValueError(row.problem)
            texts = captions(row.caption)
        except ValueError as error:
            drops.append(Drop(row.id, MALFORMED, str(error), where))
            continue
        if not texts:
            drops.append(Drop(row.id, EMPTY, "", where))
            continue
        _, known = found.setdefault(row.id, (row, []))
        known += [text for text in texts if text not in known]
    yield from drops
    for name, (row, texts) in found.items():
        yield Item(name, {"caption": one_or_list(texts)}, {modality: row.names}, f"{source}: row {row.row}")
