"""A dataset: annotations, media and a task's way of writing them, one tokenised example at a time.

Bad media in training are replaced by another sample of the same dataset, chosen by the seed alone, and every
replacement is handed on as a ledger entry; in evaluation nothing is ever replaced.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from chatbridge.common.batch import MultimodalBatch
from chatbridge.common.ledger import LedgerEntry
from chatbridge.common.registry import DATASETS, PROCESSORS
from chatbridge.common.schema import key
from chatbridge.conversation.segments import Media
from chatbridge.conversation.tokens import TokenizedSample
from chatbridge.datasets.annotations import AnnotationFile, Record
from chatbridge.datasets.collate import Collator, Example
from chatbridge.datasets.kinds import TaskKind
from chatbridge.datasets.mixture import Draw
from chatbridge.processors.media import MediaLoader
from chatbridge.processors.tokenizer import Tokenizer

MAX_TRIES = 10
"""Samples in a row that may be unusable before reading gives up."""


class Renderer(Protocol):
    """What a dataset asks of a task (see `chatbridge.tasks.base`)."""

    compat: str

    def render(self, record: Record, kind: TaskKind, rng: Any, item: int | None, open: bool) -> Any: ...
    def items(self, record: Record, kind: TaskKind) -> Sequence[int | None]: ...
    def check_kind(self, kind: TaskKind) -> None: ...
    def tokenize(self, rendered: Any, tokenizer: Tokenizer, queries: Mapping[str, int]) -> TokenizedSample: ...


@dataclass(kw_only=True)
class AnnotationsConfig:
    """Keys of one dataset."""

    annotations: list[str] | str = key(path=True, help="JSON or JSON-lines file, or several of them")
    kind: str = key(help="what is shown and asked: ti-cap, tva-conv, ta-shortqa ...; a%b draws one per sample")
    media: dict[str, str] = key({}, path=True, help="modality -> folder of its files")
    processors: dict[str, Any] = key({}, registry=PROCESSORS, help="modality -> processor, instead of the run's own")
    weight: float | None = key(None, low=0.0, help="share in the mixture; null takes its size in batches")
    batch_size: int = key(8, low=1, unit="samples", help="per step over all ranks")
    invalid: str = key("error", choices=("error", "skip"), help="what to do with malformed annotation entries")
    limit: int | None = key(None, low=1, unit="entries", help="use the first entries only")
    cache_mb: int = key(0, low=0, unit="MiB", help="memory per worker for media read under evaluation rules")
    augment: bool = key(True, help="read training media under the training rules (random frames, clips, crops)")
    conditions: list[str] = key(["full"], help="evaluation: which of run.conditions it is put to")
    verdict_after: str | None = key(None, help="evaluation: answers reason first; only what follows this is compared")


@dataclass
class Parts:
    """What datasets of one run share."""

    task: Renderer
    tokenizer: Tokenizer
    queries: Mapping[str, int]
    processors: Mapping[str, Any]
    seed: int = 0


@DATASETS.register("annotations", config=AnnotationsConfig)
class AnnotatedDataset:
    """Examples of one annotation list.

    Args:
        config: its keys; name: what messages and logs call it; parts: task, tokenizer and processors.
        open: leave the last answer out (generation).

    Raises:
        ValueError: annotations that cannot be read, or a kind whose modalities nothing here serves.
    """

    def __init__(self, config: AnnotationsConfig, name: str, parts: Parts, open: bool = False):
        self.config, self.name, self.parts, self.open = config, name, parts, open
        processors = {**parts.processors, **{m: PROCESSORS.build(c) for m, c in config.processors.items()}}
        self.kinds = self._kinds(processors)
        self.media = MediaLoader(processors, config.media, config.cache_mb * 2**20)
        files = [config.annotations] if isinstance(config.annotations, str) else config.annotations
        compat = parts.task.compat
        lists = [AnnotationFile(file, self.kinds, config.invalid, not open, compat) for file in files]
        self.skipped = [line for records in lists for line in records.skipped]
        self._lists = lists
        self._places = [(n, i) for n, records in enumerate(lists) for i in range(len(records))][: config.limit]

    def _kinds(self, processors: Mapping[str, Any]) -> tuple[TaskKind, ...]:
        known = {*processors, *self.parts.queries}
        try:
            kinds = TaskKind.parse_all(self.config.kind, known)
            for kind in kinds:
                self.parts.task.check_kind(kind)
                for modality in kind.modalities:
                    for table, what in (
                        (self.parts.queries, "a bridge under model.bridges"),
                        (processors, "a processor under processors"),
                        (self.config.media, "a folder under its media"),
                    ):
                        if modality not in table:
                            raise ValueError(f"kind '{kind.name}' shows '{modality}', which needs {what}")
        except ValueError as error:
            raise ValueError(f"dataset '{self.name}': {error}") from error
        return kinds

    def __len__(self) -> int:
        return len(self._places)

    def record(self, index: int) -> Record:
        """The annotation at a place in the list."""
        number, place = self._places[index]
        return self._lists[number][place]

    def example(self, index: int, epoch: int) -> tuple[Example, list[LedgerEntry]]:
        """A training example, or the one that takes its place, with the ledger entries of those that were unusable.

        Raises:
            ValueError: when `MAX_TRIES` samples in a row are unusable.
        """
        rng = random.Random(f"{self.parts.seed}/{self.name}/{epoch}/{index}")
        failures: list[tuple[str, str, str]] = []
        for _ in range(MAX_TRIES):
            record = self.record(index)
            try:
                kind = rng.choice(self.kinds) if len(self.kinds) > 1 else self.kinds[0]
                example, _ = self.read(record, kind, rng)
            except ValueError as error:  # an unreadable medium, or a sample that cannot fit
                failures.append((record.id, getattr(error, "source", record.id), getattr(error, "reason", str(error))))
                index = rng.randrange(len(self))
                continue
            entries = [LedgerEntry(self.name, i, file, why, record.id) for i, file, why in failures]
            return example, entries
        _, file, why = failures[-1]
        raise ValueError(f"dataset '{self.name}': {MAX_TRIES} samples in a row cannot be used; the last: {file}: {why}")

    def read(
        self,
        record: Record,
        kind: TaskKind,
        rng: random.Random | None = None,
        item: int | None = None,
        blank: Sequence[str] = (),
    ) -> tuple[Example, Any]:
        """One record as an example, and as it was rendered.

        Args:
            rng: of training; None for evaluation.
            blank: modalities whose media are replaced by their processor's empty one (ablations).

        Raises:
            ValueError: an unreadable medium (`MediaError`), or a sample that cannot fit.
        """
        rendered = self.parts.task.render(record, kind, rng, item, self.open)
        tokens = self.parts.task.tokenize(rendered, self.parts.tokenizer, self.parts.queries)
        wanted = {segment.modality: segment.count for segment in rendered.segments if isinstance(segment, Media)}
        media_rng = rng if self.config.augment else None
        media = {}
        for modality, count in wanted.items():
            if modality in blank:
                media[modality] = [self.media.blank(modality)] * count
            else:
                media[modality] = [self.media.load(modality, file, media_rng) for file in record.files_of(modality)]
        return Example(tokens, media, list(rendered.references), rendered.group), rendered


class MixtureDataset:
    """The datasets of a mixture behind one index, `Draw`; reads whole batches (PyTorch's ``__getitems__``)."""

    def __init__(self, datasets: Sequence[AnnotatedDataset]):
        self.datasets = list(datasets)

    def __getitems__(self, draws: Sequence[Draw]) -> list[tuple[str, Example, list[LedgerEntry]]]:
        return [self[draw] for draw in draws]

    def __getitem__(self, draw: Draw) -> tuple[str, Example, list[LedgerEntry]]:
        dataset = self.datasets[draw.dataset]
        return dataset.name, *dataset.example(draw.index, draw.epoch)


@dataclass
class MixtureCollator:
    """Collates what `MixtureDataset` reads; picklable."""

    collator: Collator

    def __call__(self, items: Sequence[tuple[str, Example, list[LedgerEntry]]]) -> MultimodalBatch:
        batch = self.collator([example for _, example, _ in items], items[0][0])
        return replace(batch, ledger=[entry for _, _, entries in items for entry in entries])
