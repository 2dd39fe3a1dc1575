"""Datasets of tar shards: read by number where the tars are local files, else in sequence from wherever they are."""

from __future__ import annotations

import json
import random
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from chatbridge.common.registry import DATASETS
from chatbridge.common.schema import key
from chatbridge.datasets.annotations import Record
from chatbridge.datasets.builder import DatasetConfig, Parts, TaskDataset
from chatbridge.datasets.local_shards import Extent, LocalShards
from chatbridge.datasets.orders import Blend, BlendedOrder, ShardOrder
from chatbridge.datasets.shards import Shard, find_shards, is_local, scan
from chatbridge.processors.base import Blob, MediaError
from chatbridge.processors.media import MediaLoader

FIRST = 8
"""Samples that are looked at before training starts."""


@dataclass(kw_only=True)
class WebdatasetConfig(DatasetConfig):
    """Keys of a dataset of tar shards."""

    shards: dict[str, float] | list[str] | str | None = key(
        None,
        help="paths, URLs, pipe: commands, with {000..123} or (local) *, or an index.json; a mapping gives each its "
        "share; null takes the folder's index.json, or all its tars",
    )
    folder: str | None = key(None, path=True, help="where relative paths of shards start")
    index: str | None = key(None, path=True, help="index.json that tells the sizes of shards named by URL")
    access: str = key(
        "auto",
        choices=("auto", "number", "sequence"),
        help="number: local tars, any sample at any time; sequence: each shard from its beginning; auto: number "
        "where all shards are local and not compressed",
    )
    shuffle: int = key(1000, low=0, unit="samples", help="shuffled with one another, shard after shard; 0 keeps order")
    retries: int = key(3, low=0, help="sequence: how often a shard that fails is opened again before it is given up")
    retry_seconds: float = key(1.0, low=0.0, unit="seconds", help="sequence: wait before that, doubled every time")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shards is None and self.folder is None:
            raise ValueError("shards or folder is needed: where are the tars?")

    def lists(self) -> dict[str, float]:
        """Pattern -> share; patterns given as a list are one list."""
        if isinstance(self.shards, dict):
            return dict(self.shards)
        return {}

    def patterns(self) -> list[list[str]]:
        """The patterns of every list."""
        if isinstance(self.shards, dict):
            return [[pattern] for pattern in self.shards]
        if self.shards is None:
            return [["index.json" if (Path(self.folder) / "index.json").exists() else "*.tar"]]
        return [[self.shards] if isinstance(self.shards, str) else list(self.shards)]


class Reference(str):
    """The name of a shard's member, for messages, and where its bytes are.

    Attributes:
        place: (number of the shard, where in it), for shards that are read by number.
        data: the bytes themselves, else.
    """

    place: tuple[int, Extent] | None = None
    data: bytes | None = None

    @classmethod
    def of(cls, name: str, place: tuple[int, Extent] | None = None, data: bytes | None = None) -> Reference:
        made = cls(name)
        made.place, made.data = place, data
        return made


class ShardMedia(MediaLoader):
    """Loads members of shards."""

    def __init__(self, processors: Mapping[str, Any], shards: LocalShards):
        super().__init__(processors, {})
        self.shards = shards

    def load(self, modality: str, name: str, rng: random.Random | None = None) -> Tensor:
        data = name.data if name.place is None else self.shards.bytes_at(*name.place)
        tensor = self._processor(modality).load(Blob(str(name), data), rng)
        if tensor is None:  # only with compat: original
            raise MediaError(name, f"is too short for a {modality} (compat: original refuses what default pads)")
        return tensor

    def find(self, modality: str, name: str) -> Path:
        """What stands for the file in reports: the shard's path with the member's name."""
        return Path(name)


@DATASETS.register("webdataset", config=WebdatasetConfig)
class ShardDataset(TaskDataset):
    """Tars in which every sample has its media and, as ``.json``, its annotation entry (or, as ``.txt``, a caption).

    Args:
        config: its keys; name: what messages and logs call it; parts: task, tokenizer and processors.
        open: leave the last answer out (generation).

    Attributes:
        lists: the shards of every list; weights: the lists' shares.

    Raises:
        ValueError: shards that are missing, cut off or not what their index says (unless ``invalid: skip``), and a
            first sample that does not serve for the kind.
    """

    def __init__(self, config: WebdatasetConfig, name: str, parts: Parts, open: bool = False):
        super().__init__(config, name, parts, open)
        try:
            folder = None if config.folder is None else Path(config.folder)
            index = None if config.index is None else Path(config.index)
            self.lists = [find_shards(patterns, folder, index) for patterns in config.patterns()]
            self.weights = list(config.lists().values()) or [1.0]
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
        self.media = ShardMedia(self.processors, LocalShards([s for shards in self.lists for s in shards]))
        if not self.sequential:
            self._try_first()

    def _try_first(self) -> None:
        """Refuse shards of which none of the first samples serves: what they all lack, the others will lack, too."""
        first = None
        for index in range(min(FIRST, len(self))):
            try:
                self.record(index)
                return
            except MediaError as error:
                first = first or error
        raise ValueError(f"dataset '{self.name}': not one of its first samples can be used: {first}") from first

    def _look(self) -> None:
        """Compare local shards with their index, or count them where there is none."""
        problems = []
        for number, shards in enumerate(self.lists):
            kept = []
            for shard in shards:
                looked, problem = _look_at(shard, self.sequential) if is_local(shard.url) else (shard, None)
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
        index = range(len(self))[index]
        number = bisect_right(self._ends, index)
        place = index - (self._ends[number - 1] if number else 0)
        shard = self.media.shards.shards[number]
        name, found = self.media.shards.entry(number, place)
        return self.parse(shard, {"__key__": name, **found}, number)

    def parse(self, shard: Shard, members: Mapping[str, Any], number: int | None = None) -> Record:
        """A sample's record. `number` is the shard's, where `members` has the places of media; else it has the bytes.

        Raises:
            MediaError: a malformed entry, or a medium that is not there.
        """
        name = members["__key__"]
        where = f"{shard.url}/{name}"
        try:
            record = Record.parse({"id": name, **_entry(members)}, 0, self.parts.task.compat)
            if not record.shared:
                record = replace(record, shared=(name,))
            for kind in self.kinds:
                record.check(kind, not self.open)
        except ValueError as error:
            raise MediaError(f"{where}.json", str(error)) from error
        for modality in {modality for kind in self.kinds for modality in kind.modalities}:
            # The record was made here, and so was its table of files.
            record.files[modality] = self._references(where, record.files_of(modality), modality, members, number)
        return record

    def _references(
        self, where: str, names: Sequence[str], modality: str, members: Mapping[str, Any], number: int | None
    ) -> tuple[Reference, ...]:
        """One member for each file that the record names: see `choose_members`."""
        endings = tuple(self.processors[modality].extensions)
        found = []
        for name, chosen in zip(names, choose_members(names, members, endings), strict=True):
            if chosen is None:
                raise MediaError(where, f"has no {modality} for '{name}' (looked for {' '.join(endings)})")
            place, data = (None, members[chosen]) if number is None else ((number, members[chosen]), None)
            found.append(Reference.of(f"{where}.{chosen}", place, data))
        return tuple(found)


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


def _entry(members: Mapping[str, Any]) -> dict[str, Any]:
    """The annotation entry of a sample: its ``.json``, with its ``.txt`` as caption where that has none."""
    entry: Any = {}
    if "json" in members:
        try:
            entry = json.loads(members["json"])
        except ValueError as error:  # not JSON, or not UTF-8
            raise ValueError(f"is not valid JSON: {error}") from error
        if not isinstance(entry, dict):
            raise ValueError(f"an entry must be a JSON object, not {type(entry).__name__}")
    elif "txt" not in members:
        raise ValueError("is missing: a sample needs its annotation entry as .json, or a caption as .txt")
    if "txt" in members and entry.get("caption") is None and entry.get("desc") is None:
        entry = {**entry, "caption": members["txt"].decode("utf-8", "replace").strip()}
    return {name: value for name, value in entry.items() if value is not None}


def _look_at(shard: Shard, sequential: bool) -> tuple[Shard, str | None]:
    """A local shard with its size, and what is wrong with it."""
    path = Path(shard.url.removeprefix("file:"))
    try:
        size = path.stat().st_size
    except OSError as error:
        return replace(shard, samples=0), f"cannot be opened ({error.strerror or error})"
    if shard.samples is not None:
        changed = shard.size is not None and shard.size != size
        if not changed or sequential:
            return shard, f"has {size} bytes, its index says {shard.size}" if changed else None
    elif sequential or path.suffix != ".tar":
        return shard, "is empty (0 bytes)" if size == 0 else None
    table = scan(path)
    problem = table.problem
    if shard.samples is not None:
        problem = (
            problem or f"has {size} bytes and {len(table)} samples, its index says {shard.size} and {shard.samples}"
        )
    return Shard(shard.url, len(table), size), problem
