"""Datasets of annotation files beside folders of media; the files are checked at once and read lazily.

A list may be millions of entries long, and every data-loader worker has it. Therefore only the byte offsets of the
entries are kept (16 bytes each); an entry is parsed when it is asked for, from the memory-mapped file.
"""

from __future__ import annotations

import mmap
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from chatbridge.common.documents import DocumentError, open_regular, parse_json
from chatbridge.common.json_stream import json_entries
from chatbridge.common.registry import DATASETS
from chatbridge.common.schema import key
from chatbridge.datasets.base import DatasetConfig, Parts, TaskDataset
from chatbridge.datasets.kinds import TaskKind
from chatbridge.datasets.records import Record
from chatbridge.processors.media_loader import MediaLoader

_MISSPELT = {"captions": "caption", "questions": "question", "answers": "answer", "conversation": "conversations"}


class BadEntry(NamedTuple):
    """An entry that does not serve: its number in the file, its id where it has one, and what is wrong, in words."""

    number: int
    id: str
    faults: list[str]


class AnnotationFile(Sequence):
    """The records of one annotation file: a JSON list, or JSON lines.

    Args:
        path: the file (``.json``, or ``.jsonl`` with one entry a line).
        kinds: what the entries must serve for; each entry is checked once, here.
        invalid: "error" refuses a file with bad entries; "skip" leaves them out; "report" does, too, and accepts
            that nothing is left: see `bad`.
        answered: whether entries need answers (training) or may lack them (prediction).
        parse: makes a record of an entry and its number.

    Attributes:
        bad: the entries that were left out.

    Raises:
        ValueError: a file that is missing, not JSON, not a list, or empty; bad entries, with file, index and reason.
    """

    def __init__(
        self,
        path: str | Path,
        kinds: Sequence[TaskKind] = (),
        invalid: str = "error",
        answered: bool = True,
        parse: Callable[[Any, int], Record] = Record.parse,
    ):
        if invalid not in ("error", "skip", "report"):
            raise ValueError(f"invalid is 'error' or 'skip', not '{invalid}'")
        self.path = Path(path)
        self.kinds = tuple(kinds)
        self.parse = parse
        self.bad: list[BadEntry] = []
        self._starts, self._ends, self._left_out = array("q"), array("q"), array("q")
        self._map: mmap.mmap | None = None
        for index, (entry, start, end) in enumerate(self._entries()):
            record, faults = checked_entry(entry, index, self.kinds, answered, parse)
            if faults:
                self.bad.append(BadEntry(index, record.id if record else "", faults))
                self._left_out.append(index - len(self._left_out))
                continue
            self._starts.append(start)
            self._ends.append(end)
        if self.bad and invalid == "error":
            more = f"\n... and {len(self.bad) - 5} more" if len(self.bad) > 5 else ""
            raise ValueError("\n".join(self.skipped[:5]) + more)
        if not self._starts and not (self.bad and invalid == "report"):
            raise ValueError(f"{self.path}: holds no {'valid ' if self.bad else ''}annotations")

    @property
    def skipped(self) -> list[str]:
        """What was left out, a line each."""
        return [f"{self.path}: entry {entry.number}: {'; '.join(entry.faults)}" for entry in self.bad]

    def number(self, place: int) -> int:
        """Which entry of the file stands at a place, those counted that were left out."""
        return place + bisect_right(self._left_out, place)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Record:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        number = self.number(place)
        try:
            if self._map is None:  # opened per process: a memory map does not survive pickling
                with open_regular(self.path) as file:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            text = self._map[self._starts[place] : self._ends[place]].decode("utf-8", "surrogateescape")
            return self.parse(parse_json(text, f"entry {number}"), number)
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.path}: entry {number} changed while the run had it open: {error}") from error

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_map": None}

    def _entries(self) -> Iterator[tuple[Any, int, int]]:
        try:
            with open_regular(self.path) as file:
                yield from json_entries(file, self.path, self.path.suffix == ".jsonl")
        except FileNotFoundError:
            raise DocumentError(self.path, "does not exist") from None
        except OSError as error:
            raise DocumentError(self.path, f"cannot be read ({error.strerror or error})") from error


def checked_entry(
    entry: Any,
    index: int,
    kinds: Sequence[TaskKind],
    answered: bool = True,
    parse: Callable[[Any, int], Record] = Record.parse,
) -> tuple[Record | None, list[str]]:
    """The record of an entry (None where none can be made), and everything that is wrong with it, in words.

    Arguments are those of `Record.parse` and `AnnotationFile`.
    """
    try:
        record = parse(entry, index)
    except ValueError as error:
        return None, [str(error)]
    if len(kinds) == 1:
        found = record.faults(kinds[0], answered)
    else:
        found = list(dict.fromkeys(fault for kind in kinds for fault in record.faults(kind, answered)))
    return record, [fault + _hint(entry, fault) for fault in found]


def _hint(entry: Any, fault: str) -> str:
    near = next((key for key, meant in _MISSPELT.items() if key in entry and f"lacks {meant}" in fault), None)
    return f" (it has '{near}': did you mean '{_MISSPELT[near]}'?)" if near else ""


@dataclass(kw_only=True)
class AnnotationsConfig(DatasetConfig):
    """Keys of a dataset of annotation files and media folders."""

    annotations: list[str] | str = key(path=True, resume="free", help="JSON or JSON-lines file, or several of them")
    media: dict[str, str] = key({}, path=True, resume="free", help="modality -> folder of its files")
    cache_mb: int = key(
        0,
        resume="free",
        low=0,
        high=1 << 30,
        unit="MiB",
        help="memory per worker for media read under evaluation rules",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.annotations:
            raise ValueError("annotations is empty; name at least one file")


@DATASETS.register("annotations", config=AnnotationsConfig)
class AnnotatedDataset(TaskDataset):
    """Annotation files beside folders of media.

    Raises:
        ValueError: annotations that cannot be read, or a kind whose modalities nothing here serves.
    """

    def __init__(self, config: AnnotationsConfig, name: str, parts: Parts, prompt_only: bool = False):
        super().__init__(config, name, parts, prompt_only, folders=config.media)
        self.media = MediaLoader(self.processors, config.media, config.cache_mb * 2**20)
        files = [config.annotations] if isinstance(config.annotations, str) else config.annotations
        parse = parts.task.parse
        self.lists = [AnnotationFile(file, self.kinds, config.invalid, not prompt_only, parse) for file in files]
        self.skipped = [line for records in self.lists for line in records.skipped]
        # Nothing is kept per entry here: a list of a million small objects is copied by every worker that touches it.
        self._ends = list(accumulate(len(records) for records in self.lists))
        self._length = min(self._ends[-1], config.limit or self._ends[-1])

    def __len__(self) -> int:
        return self._length

    def record(self, index: int) -> Record:
        file, place = self._place(index)
        return self.lists[file][place]

    def where(self, index: int) -> tuple[str, int]:
        file, place = self._place(index)
        return str(self.lists[file].path), self.lists[file].number(place)
