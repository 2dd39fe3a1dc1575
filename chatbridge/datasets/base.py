"""What all datasets are: annotations, media and a task's way of writing them, one tokenised example at a time.

An unusable sample is replaced in training by another one of the same dataset, chosen by the seed alone, and every
replacement has its ledger entry; in evaluation nothing is replaced.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from chatbridge.common.ledger import LedgerEntry
from chatbridge.common.read_mode import EVALUATION, ReadMode, Training
from chatbridge.common.registry import METRICS, PROCESSORS
from chatbridge.common.schema import key
from chatbridge.contracts import Processor, RowsOf, Task
from chatbridge.conversation.segments import Media
from chatbridge.conversation.tokens import TokenizedSample
from chatbridge.datasets.collate import Example
from chatbridge.datasets.kinds import TaskKind
from chatbridge.datasets.mixture import Order, Shuffled
from chatbridge.datasets.records import Record
from chatbridge.processors.base import build_processors
from chatbridge.processors.media_loader import MediaLoader
from chatbridge.processors.tokenizer import Tokenizer

MAX_TRIES = 10
"""Samples in a row that may be unusable before reading gives up."""


class SampleErrors:
    """Around all that is done with one sample: whatever goes wrong inside is a ValueError, and costs the sample only.

    A decoder or tokenizer may raise anything. (An AssertionError is a mistake of ours, and ends the run.)
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, (ValueError, AssertionError)):
            message = " ".join(str(error).split())
            raise ValueError(f"cannot be used ({kind.__name__}{': ' if message else ''}{message})") from error


sample_errors = SampleErrors()


@dataclass(kw_only=True)
class DatasetConfig:
    """Keys that every dataset has, wherever its samples come from."""

    kind: str = key(help="what is shown and asked: ti-cap, tva-conv, ta-shortqa ...; a%b draws one per sample")
    processors: dict[str, Any] = key({}, registry=PROCESSORS, help="modality -> processor, instead of the run's own")
    weight: float | None = key(None, low=0.0, high=1e15, help="share in the mixture; null takes its size in batches")
    batch_size: int = key(8, low=1, high=1 << 16, unit="samples", help="per step over all ranks")
    batch_tokens: int | None = key(
        None,
        low=1,
        high=1 << 31,
        unit="positions",
        help="instead of batch_size: as many samples as fit in, padding counted",
    )
    pack: int | None = key(
        None,
        low=1,
        high=1 << 20,
        unit="positions",
        help="samples share rows of this length, first-fit; null gives each its own row",
    )
    invalid: str = key("error", choices=("error", "skip"), help="what to do with malformed entries and broken shards")
    limit: int | None = key(None, low=1, unit="entries", help="use the first entries only")
    augment: bool = key(True, help="read training media under the training rules (random frames, clips, crops)")
    conditions: list[str] = key(["full"], help="evaluation: which of run.conditions it is put to")
    verdict_after: str | None = key(None, help="evaluation: answers reason first; only what follows this is compared")
    metrics: list[Any] | None = key(
        None, registry=METRICS, help="evaluation: what answers are scored by; null: exact_match"
    )

    def __post_init__(self) -> None:
        if not self.conditions:
            raise ValueError("conditions is empty; name at least one, or leave the key out to ask under 'full'")
        if self.batch_tokens is not None and self.pack is not None and self.pack > self.batch_tokens:
            raise ValueError(f"pack ({self.pack}) is more than the whole batch may have (batch_tokens)")


@dataclass
class Parts:
    """What datasets of one run share.

    Attributes:
        rows: modality -> how many rows the model makes of a medium of a shape; those that it has a bridge for.
    """

    task: Task
    tokenizer: Tokenizer
    rows: Mapping[str, RowsOf]
    processors: Mapping[str, Processor]
    seed: int = 0


class TaskDataset:
    """Examples from records. Subclasses say how many records there are and read one.

    Args:
        config: its keys; name: what messages and logs call it; parts: task, tokenizer and processors.
        prompt_only: leave the last answer out (generation).
        folders: modality -> where its files are, for datasets that need such a place.

    Attributes:
        kinds: what is shown and asked; rows: positions that a medium of each modality takes; media: loads what records
            name; skipped: what was left out, a line each.
        max_positions: a longer sample is unusable (set where batches have a budget of positions).
        sequential: whether samples can only be read one after the other.

    Raises:
        ValueError: a kind whose modalities have no bridge, processor or folder.
    """

    sequential = False
    media: MediaLoader
    _ends: Sequence[int]

    def __init__(
        self,
        config: DatasetConfig,
        name: str,
        parts: Parts,
        prompt_only: bool = False,
        folders: Mapping[str, Any] | None = None,
    ):
        self.config, self.name, self.parts, self.prompt_only = config, name, parts, prompt_only
        own = build_processors(config.processors, f"dataset '{name}': processors")
        self.processors = {**parts.processors, **own}
        self.kinds = self._kinds(folders)
        self.modalities = sorted({modality for kind in self.kinds for modality in kind.modalities})
        self.rows = {m: parts.rows[m](self.processors[m].shape) for m in self.modalities}
        self.skipped: list[str] = []
        self.max_positions: int | None = None

    def _kinds(self, folders: Mapping[str, Any] | None) -> tuple[TaskKind, ...]:
        known = {*self.processors, *self.parts.rows}
        needs = [
            (self.parts.rows, "a bridge under model.bridges"),
            (self.processors, "a processor under processors"),
        ]
        if folders is not None:
            needs.append((folders, "a folder under its media"))
        try:
            kinds = TaskKind.parse_all(self.config.kind, known)
            for kind in kinds:
                self.parts.task.check_kind(kind)
                for modality in kind.modalities:
                    for table, what in needs:
                        if modality not in table:
                            raise ValueError(f"kind '{kind.name}' shows '{modality}', which needs {what}")
        except ValueError as error:
            raise ValueError(f"dataset '{self.name}': {error}") from error
        return kinds

    def __len__(self) -> int:
        raise NotImplementedError

    def _place(self, index: int) -> tuple[int, int]:
        """(number of the file, number in it) of a sample, by where files end in the dataset: `_ends`."""
        index = range(len(self))[index]
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    @property
    def length(self) -> int | None:
        """Its size in samples, None where that is not known."""
        return len(self)

    def order(self, seed: int) -> Order:
        """How its samples come in training."""
        return Shuffled(self.name, len(self), seed)

    def record(self, index: int) -> Record:
        """The annotation at a place in the list. Raises MediaError where it cannot be read."""
        raise NotImplementedError

    def where(self, index: int) -> tuple[str, int]:
        """The file that a sample's annotation is in, and its number there: for reports."""
        return self.name, index

    def example(self, index: int, epoch: int) -> tuple[Example, list[LedgerEntry]]:
        """A training example, or the one that takes its place, with the ledger entries of those that were unusable.

        Raises:
            ValueError: when `MAX_TRIES` samples in a row are unusable.
        """
        rng, entries = self.rng(epoch, index), []
        for _ in range(MAX_TRIES):
            identity, found = self.try_read(f"#{index}", partial(self.record, index), partial(self.draw, rng=rng))
            if isinstance(found, Example):
                return found, [replace(entry, replaced_by=identity) for entry in entries]
            entries.append(found)
            index = rng.randrange(len(self))
        raise self.gives_up(entries[-1])

    def try_read(
        self, identity: str, load: Callable[[], Record], make: Callable[[Record], Example]
    ) -> tuple[str, Example | LedgerEntry]:
        """A sample's id, and what is made of its record or, where it is unusable, why.

        Args:
            identity: the id as long as there is no record.
        """
        try:
            with sample_errors:
                record = load()
                identity = record.id
                return identity, make(record)
        except ValueError as error:
            file, reason = getattr(error, "source", identity), getattr(error, "reason", str(error))
            return identity, LedgerEntry(self.name, identity, file, reason)

    def rng(self, *place: int | str) -> random.Random:
        """What a training sample's choices are drawn with: seed and place, epoch before index, decide them."""
        return random.Random("/".join(map(str, (self.parts.seed, self.name, *place))))

    def draw(self, record: Record, rng: random.Random) -> Example:
        """A training example of one record. Raises ValueError: an unreadable medium, or a sample that cannot fit."""
        kind = rng.choice(self.kinds) if len(self.kinds) > 1 else self.kinds[0]
        return self.checked(self.read(record, kind, Training(rng)))

    def checked(self, example: Example) -> Example:
        """The example, if a row or batch has room for it. Raises ValueError."""
        if self.max_positions is not None and self.size(example) > self.max_positions:
            raise ValueError(
                f"takes {self.size(example)} positions, more than the {self.max_positions} of a row or batch; "
                f"raise pack or batch_tokens"
            )
        return example

    def size(self, example: Example) -> int:
        """Positions that an example takes in a row, BOS included."""
        return len(example.tokens) + (self.parts.tokenizer.bos_id is not None)

    def gives_up(self, last: LedgerEntry) -> ValueError:
        """What to raise when too many samples in a row were unusable."""
        return ValueError(
            f"dataset '{self.name}': {MAX_TRIES} samples in a row cannot be used; the last: {last.file}: {last.reason}"
        )

    def read(
        self,
        record: Record,
        kind: TaskKind,
        mode: ReadMode = EVALUATION,
        item: int | None = None,
        blank: Sequence[str] = (),
    ) -> Example:
        """One record as an example.

        Args:
            blank: modalities whose media are replaced by their processor's empty one (ablations).

        Raises:
            ValueError: an unreadable medium (`MediaError`), or a sample that cannot fit.
        """
        how, media = mode if self.config.augment else EVALUATION, {}
        with sample_errors:
            rendered, tokens = self.written(record, kind, mode, item)
            for modality, count in {s.modality: s.count for s in rendered.segments if isinstance(s, Media)}.items():
                if modality in blank:
                    media[modality] = [self.media.blank(modality)] * count
                else:
                    media[modality] = [self.media.load(modality, file, how) for file in record.files_of(modality)]
        return Example(tokens, media)

    def written(
        self, record: Record, kind: TaskKind, mode: ReadMode = EVALUATION, item: int | None = None
    ) -> tuple[Any, TokenizedSample]:
        """One record as it is rendered, and its tokens; see `read`."""
        rendered = self.parts.task.render(record, kind, mode, item, self.prompt_only)
        return rendered, self.parts.task.tokenize(rendered, self.parts.tokenizer, self.rows)
