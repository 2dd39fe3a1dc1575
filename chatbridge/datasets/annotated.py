"""Datasets of annotation files beside folders of media."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from chatbridge.common.registry import DATASETS
from chatbridge.common.schema import key
from chatbridge.datasets.annotations import AnnotationFile
from chatbridge.datasets.base import DatasetConfig, Parts, TaskDataset
from chatbridge.datasets.records import Record
from chatbridge.processors.media_loader import MediaLoader


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

    Args:
        config: its keys; name: what messages and logs call it; parts: task, tokenizer and processors.
        prompt_only: leave the last answer out (generation).

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
        records, place = self._place(index)
        return records[place]

    def where(self, index: int) -> tuple[str, int]:
        records, place = self._place(index)
        return str(records.path), records.number(place)

    def _place(self, index: int) -> tuple[AnnotationFile, int]:
        place = range(len(self))[index]
        number = bisect_right(self._ends, place)
        return self.lists[number], place - (self._ends[number - 1] if number else 0)
