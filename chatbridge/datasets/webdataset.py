"""Datasets of tar shards: read by number where the tars are local files, else in sequence from wherever they are.

The dataset comes first; then what one sample of a shard says, and which of its members are the media that it names.
"""

from __future__ import annotations

import codecs
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from chatbridge.common.documents import parse_json
from chatbridge.common.registry import DATASETS
from chatbridge.common.schema import key
from chatbridge.datasets.base import DatasetConfig, Parts, TaskDataset, sample_errors
from chatbridge.datasets.kinds import TaskKind
from chatbridge.datasets.mixture import Blend, BlendedOrder, ShardOrder
from chatbridge.datasets.records import Record, is_blank
from chatbridge.datasets.shard_readers import PROBLEM, LocalShards, MemberPlace
from chatbridge.datasets.shards import Shard, check_local, find_shards, is_local
from chatbridge.processors.base import ArchiveMember, MediaError
from chatbridge.processors.media_loader import MediaLoader

FIRST = 8
"""Samples that are looked at before training starts."""


@dataclass(kw_only=True)
class WebdatasetConfig(DatasetConfig):
    """Keys of a dataset of tar shards."""

    shards: dict[str, float] | list[str] | str | None = key(
        None,
        low=0.0,
        high=1e15,
        help="paths, URLs, pipe: commands, with {000..123} or (local) *, or an index.json; a mapping gives each its "
        "share; null takes the folder's index.json, or all its tars",
    )
    folder: str | None = key(None, path=True, resume="free", help="where relative paths of shards start")
    index: str | None = key(
        None, path=True, resume="free", help="index.json that tells the sizes of shards named by URL"
    )
    access: str = key(
        "auto",
        choices=("auto", "number", "sequence"),
        help="number: local tars, any sample at any time; sequence: each shard from its beginning; auto: number "
        "where all shards are local and not compressed",
    )
    shuffle: int = key(1000, low=0, unit="samples", help="shuffled with one another, shard after shard; 0 keeps order")
    retries: int = key(
        3,
        resume="free",
        low=0,
        high=16,
        help="sequence: how often a shard that fails is opened again before it is given up",
    )
    retry_seconds: float = key(
        1.0, resume="free", low=0.0, high=3600.0, unit="seconds", help="sequence: wait before that, doubled every time"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shards is None and self.folder is None:
            raise ValueError("shards or folder is needed: where are the tars?")
        if self.shards is not None and not self.shards:
            raise ValueError("shards is empty; name at least one, or leave the key out to take those of folder")

    def lists(self) -> dict[tuple[str, ...], float]:
        """Patterns of a list of shards -> the list's share; several lists where `shards` is a mapping."""
        if isinstance(self.shards, dict):
            return {(pattern,): share for pattern, share in self.shards.items()}
        if self.shards is None:
            return {("index.json" if (Path(self.folder) / "index.json").exists() else "*.tar",): 1.0}
        return {(self.shards,) if isinstance(self.shards, str) else tuple(self.shards): 1.0}


@DATASETS.register("webdataset", config=WebdatasetConfig)
class ShardDataset(TaskDataset):
    """Tars in which every sample has its media and, as ``.json``, its annotation entry (or, as ``.txt``, a caption).

    Attributes:
        lists: the shards of every list; weights: the lists' shares.

    Raises:
        ValueError: shards that are missing, cut off or not what their index says (unless ``invalid: skip``), and a
            first sample that does not serve for the kind.
    """

    def __init__(self, config: WebdatasetConfig, name: str, parts: Parts, prompt_only: bool = False):
        super().__init__(config, name, parts, prompt_only)
        try:
            folder = None if config.folder is None else Path(config.folder)
            index = None if config.index is None else Path(config.index)
            self.lists = [find_shards(patterns, folder, index) for patterns in config.lists()]
            self.weights = list(config.lists().values())
            every = [shard for shards in self.lists for shard in shards]
            plain = [is_local(s.url) and s.url.endswith(".tar") for s in every]
            if config.access == "number" and not all(plain):
                raise ValueError(f"access: number needs local .tar files, not '{every[plain.index(False)].url}'")
            self.sequential = config.access == "sequence" or not all(plain)
            if self.sequential and config.limit is not None:
                raise ValueError("limit needs shards that are read by number; remove it")
            self._look()
        except ValueError as error:
            raise ValueError(f"dataset '{name}': {error}") from error
        self.media = MediaLoader(self.processors, {})
        self.reader = LocalShards([shard for shards in self.lists for shard in shards])
        if not self.sequential:
            self._try_first()

    def _try_first(self) -> None:
        """Refuse shards of which none of the first samples serves: what they all lack, the others will lack, too."""
        first = None
        for index in range(min(FIRST, len(self))):
            try:
                with sample_errors:
                    self.record(index)
                return
            except ValueError as error:
                first = first or error
        raise ValueError(f"dataset '{self.name}': not one of its first samples can be used: {first}") from first

    def _look(self) -> None:
        """Compare local shards with their index, or count them where there is none."""
        problems = []
        for number, shards in enumerate(self.lists):
            kept = []
            for shard in shards:
                looked, problem = check_local(shard, self.sequential) if is_local(shard.url) else (shard, None)
                if problem is not None:
                    problems.append(f"{shard.url}: {problem}")
                if looked.samples is None or looked.samples > 0:
                    kept.append(looked)
            self.lists[number] = kept
            if not kept:
                raise ValueError("\n".join([*problems[:5], "shards: not one has a sample"]))
        if problems and self.config.invalid == "error":
            more = f"\n... and {len(problems) - 5} more" if len(problems) > 5 else ""
            remedy = "\nrepair or remove them, or set invalid: skip to read what is there"
            raise ValueError("\n".join(problems[:5]) + more + remedy)
        self.skipped += problems

    @cached_property
    def _counts(self) -> list[list[int]]:
        return [[shard.samples for shard in shards] for shards in self.lists]

    @cached_property
    def _ends(self) -> array[int]:
        return array("q", accumulate(count for counts in self._counts for count in counts))

    @cached_property
    def length(self) -> int | None:
        if any(shard.samples is None for shards in self.lists for shard in shards):
            return None
        return min(self._ends[-1], self.config.limit or self._ends[-1])

    def __len__(self) -> int:
        if self.length is None:
            raise ValueError(f"dataset '{self.name}': how many samples its shards hold is not known; give an index")
        return self.length

    def order(self, seed: int) -> BlendedOrder:
        orders, firsts, before, left = [], [], 0, len(self)
        for number, counts in enumerate(self._counts):
            kept = np.minimum(counts, np.maximum(0, left - (np.cumsum(counts) - counts)))
            name = self.name if len(self.lists) == 1 else f"{self.name}/{number}"
            if kept.sum() == 0:
                raise ValueError(f"dataset '{self.name}': limit leaves nothing of its list {number + 1} of shards")
            orders.append(ShardOrder(name, kept, self.config.shuffle, seed))
            firsts.append(before)
            before, left = before + int(sum(counts)), left - int(kept.sum())
        return BlendedOrder(Blend(self.weights, seed, self.name), orders, firsts)

    def record(self, index: int) -> Record:
        """The annotation of a sample, its files named by their place in the shard.

        Raises:
            MediaError: a sample that is not there or whose entry is malformed.
            ValueError: a dataset that is read in sequence only.
        """
        if self.sequential:
            raise ValueError(f"dataset '{self.name}': shards read in sequence have no sample number {index}")
        number, place = self._place(index)
        return self.parse(self.reader.shards[number], self.reader.members(number, place))

    def where(self, index: int) -> tuple[str, int]:
        number, place = self._place(index)
        return self.reader.shards[number].url, place

    def parse(self, shard: Shard, members: Mapping[str, Any]) -> Record:
        """The record of a sample as `LocalShards.members` or `samples_in_sequence` gives it.

        Raises:
            MediaError: a malformed entry, or a medium that is not there.
        """
        where = f"{shard.url}/{members['__key__']}"
        if PROBLEM in members:
            raise MediaError(where, members[PROBLEM])
        record = annotation(where, members, self.kinds, not self.prompt_only, self.parts.task.parse)
        for modality in self.modalities:
            chosen = members_of(where, record, modality, members, tuple(self.processors[modality].extensions))
            # The record was made here, and so was its table of files.
            record.files[modality] = tuple(
                ArchiveMember(f"{where}.{ending}", self._bytes_of(members[ending])) for ending in chosen
            )
        return record

    def _bytes_of(self, member: bytes | MemberPlace) -> Callable[[], bytes]:
        return partial(bytes, member) if isinstance(member, bytes) else partial(self.reader.read, member)


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
