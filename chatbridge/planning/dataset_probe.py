"""A first look at a dataset: its first samples as the model will read them, and whether the media can be read."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from chatbridge.common.batch import IGNORE
from chatbridge.common.read_mode import EVALUATION, Training
from chatbridge.common.tokenizer import Tokenizer
from chatbridge.conversation.segments import Media, Segment, Text
from chatbridge.conversation.tokens import TokenizedSample
from chatbridge.datasets.base import TaskDataset, sample_errors
from chatbridge.datasets.kinds import TaskKind
from chatbridge.datasets.records import Record
from chatbridge.datasets.shard_readers import ShardLost, samples_in_sequence
from chatbridge.datasets.shards import Shard, is_local
from chatbridge.processors.base import MediaError
from chatbridge.tasks.base import Rendered

OPEN, CLOSE = "⟦", "⟧"
"""Around what is supervised."""


@dataclass
class Probe:
    """What a look at some items of a dataset found.

    Attributes:
        items: how many were looked at, evenly over the list. read: whose media were tried, before time was up.
        unreadable: one line for each whose media cannot be used. refused: each whose text cannot be made to fit.
        labels_before, labels_after: supervised tokens before and after truncation.
        without_label: items of which no supervised token is left.
        cut_items, cut_tokens: items that were shortened, and text tokens cut from them.
        lengths, labels: positions and supervised tokens of each item (without BOS); empty without a tokenizer.
        media: modality -> media of each item. media_bytes: most bytes of an item's media, as workers hand them on.
    """

    items: int = 0
    read: int = 0
    unreadable: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    labels_before: int = 0
    labels_after: int = 0
    without_label: int = 0
    cut_items: int = 0
    cut_tokens: int = 0
    lengths: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    media: dict[str, list[int]] = field(default_factory=dict)
    media_bytes: int = 0


def probe(dataset: TaskDataset, tokenizer: Tokenizer | None, count: int = 32, deadline: float = 0.0) -> Probe:
    """Look at `count` items of a dataset, evenly over its list, under the rules of training.

    Of shards that are read in sequence these are the first ones, and of remote shards none.

    Args:
        tokenizer: None where it is not there yet: then only media are tried.
        deadline: `time.monotonic` value after which no more media are opened; 0 for none.
    """
    found = Probe()
    for item in _items(dataset, count, spread=True):
        found.items += 1
        try:
            with sample_errors:
                record, kind, rendered, tokens = item.rendered(dataset, tokenizer)
                if tokens is not None:
                    _count_tokens(found, rendered, tokens, dataset, tokenizer)
        except ValueError as error:
            found.refused.append(f"{item.name}: {error}")
            continue
        if deadline and time.monotonic() > deadline:
            continue
        found.read += 1
        try:
            found.media_bytes = max(found.media_bytes, _load(dataset, record, kind, item.rng))
        except (ValueError, OSError) as error:
            found.unreadable.append(f"{record.id}: {error}")
    return found


def first_samples(dataset: TaskDataset, tokenizer: Tokenizer | None, count: int = 1) -> list[dict[str, Any]]:
    """The first samples as training will render them in epoch 0, supervised tokens between `OPEN` and `CLOSE`.

    Each is {"id", "text"} and, with a tokenizer, "positions", "supervised" and "cut". Without one the text is what
    the tokenizer would be given, before truncation.
    """
    shown = []
    for item in _items(dataset, count, spread=False):
        try:
            with sample_errors:
                _, _, rendered, tokens = item.rendered(dataset, tokenizer)
        except ValueError as error:
            shown.append({"id": item.name, "text": f"cannot be rendered: {error}"})
            continue
        if tokens is None:
            shown.append({"id": rendered.id, "text": _mark_segments(rendered.segments)})
        else:
            labels = sum(label != IGNORE for label in tokens.labels)
            sizes = {"positions": len(tokens), "supervised": labels, "cut": tokens.cut}
            shown.append({"id": rendered.id, "text": mark_tokens(tokens, tokenizer), **sizes})
    return shown


@dataclass
class _Item:
    """A record to come, and the random state with which epoch 0 reads it (`TaskDataset.example`, `ShardStream`)."""

    name: str
    record: Callable[[], Record]
    rng: random.Random

    def rendered(
        self, dataset: TaskDataset, tokenizer: Tokenizer | None
    ) -> tuple[Record, TaskKind, Rendered, TokenizedSample | None]:
        """The record, its kind, the sample and, with a tokenizer, its tokens. Raises ValueError for an unusable one."""
        record, task = self.record(), dataset.parts.task
        kind = self.rng.choice(dataset.kinds) if len(dataset.kinds) > 1 else dataset.kinds[0]
        rendered = task.render(record, kind, Training(self.rng), None, dataset.prompt_only)
        return record, kind, rendered, tokenizer and task.tokenize(rendered, tokenizer, dataset.rows)


def _items(dataset: TaskDataset, count: int, spread: bool) -> Iterator[_Item]:
    """The first `count` items of a dataset or, `spread`, as many evenly over it where items have numbers."""
    begin = f"{dataset.parts.seed}/{dataset.name}/0/"
    if dataset.sequential:
        first = dataset.lists[0][0]
        if is_local(first.url):
            yield from _in_sequence(dataset, first, count, f"{begin}0/0/")
        return
    size = len(dataset)
    tries = min(count, size)
    step = (size - 1) / max(tries - 1, 1) if spread else 1
    for index in (round(i * step) for i in range(tries)):
        yield _Item(f"#{index}", partial(dataset.record, index), random.Random(f"{begin}{index}"))


def _in_sequence(dataset: TaskDataset, shard: Shard, count: int, begin: str) -> Iterator[_Item]:
    """The first items of a shard; one that stands for the rest where the shard cannot be read on."""

    def lost(reason: str) -> Record:
        raise MediaError(shard.url, reason)

    number = -1
    try:
        for number, sample in islice(samples_in_sequence(shard), count):
            yield _Item(f"#{number}", partial(dataset.parse, shard, sample), random.Random(f"{begin}{number}"))
    except ShardLost as error:
        yield _Item(f"#{number + 1}", partial(lost, error.reason), random.Random(begin))


def mark_tokens(sample: TokenizedSample, tokenizer: Tokenizer) -> str:
    """A sample's ids as text, truncation included; media as ``<image x32>``, supervised runs between the marks."""
    media = {slot.start: slot for slot in sample.slots}
    parts, place = [], 0
    while place < len(sample):
        if place in media:
            slot = media[place]
            parts.append(f"<{slot.modality} x{slot.length}>")
            place += slot.length
            continue
        supervised = sample.labels[place] != IGNORE
        end = place
        while end < len(sample) and end not in media and (sample.labels[end] != IGNORE) == supervised:
            end += 1
        text = _one_line(tokenizer.decode(sample.input_ids[place:end], skip_special=False))
        parts.append(OPEN + text + CLOSE if supervised else text)
        place = end
    return "".join(parts)


def _mark_segments(segments: Sequence[Segment]) -> str:
    parts = []
    for segment in segments:
        if isinstance(segment, Media):
            parts.append(f"<{segment.modality}>" * segment.count)
        else:
            parts.append(OPEN + _one_line(segment.text) + CLOSE if segment.supervised else _one_line(segment.text))
    return "".join(parts)


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n")


def _count_tokens(
    found: Probe, rendered: Rendered, tokens: TokenizedSample, dataset: TaskDataset, tokenizer: Tokenizer
) -> None:
    answers = [s.text for s in rendered.segments if isinstance(s, Text) and s.supervised]
    left = sum(label != IGNORE for label in tokens.labels)
    found.labels_before += sum(len(tokenizer.encode(text)) for text in answers)
    found.labels_after += left
    found.without_label += left == 0
    found.cut_items += tokens.cut > 0
    found.cut_tokens += tokens.cut
    found.lengths.append(len(tokens))
    found.labels.append(left)
    counts = {m: 0 for kind in dataset.kinds for m in kind.modalities}
    for slot in tokens.slots:
        counts[slot.modality] = counts.get(slot.modality, 0) + slot.count
    for modality, count in counts.items():
        found.media.setdefault(modality, []).append(count)


def _load(dataset: TaskDataset, record: Record, kind: TaskKind, rng: random.Random) -> int:
    """Bytes of a record's media. Raises ValueError or OSError where one cannot be used."""
    mode = Training(rng) if dataset.config.augment else EVALUATION
    files = [(modality, file) for modality in kind.modalities for file in record.files_of(modality)]
    return sum(dataset.media.load(modality, file, mode).nbytes for modality, file in files)
