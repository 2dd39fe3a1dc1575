"""A look at some items of a dataset: how they read, whether their media can be used, how much of their text is kept."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from typing import Any

from chatbridge.common.batch import IGNORE
from chatbridge.common.read_mode import EVALUATION, Training
from chatbridge.common.tokenizer import Tokenizer
from chatbridge.conversation.segments import Media, Text
from chatbridge.conversation.tokens import TokenizedSample
from chatbridge.datasets.base import TaskDataset, sample_errors
from chatbridge.datasets.records import Record
from chatbridge.datasets.shard_readers import ShardLost, samples_in_sequence
from chatbridge.datasets.shards import is_local
from chatbridge.processors.base import MediaError
from chatbridge.tasks.base import Rendered

OPEN, CLOSE = "⟦", "⟧"
"""Around what is supervised."""


@dataclass
class Probe:
    """What a look at some items of a dataset found.

    Attributes:
        entries: of the dataset; None where that is not known.
        items: how many were looked at. read: whose media were tried, before time was up.
        samples: the first of them as training reads them, {"id", "text"} and, with a tokenizer, "positions",
            "supervised" and "cut"; without one the text is what the tokenizer would be given, before truncation.
        unreadable: one line for each whose media cannot be used. refused: each whose text cannot be made to fit.
        labels_before, labels_after: supervised tokens before and after truncation.
        without_label: items of which no supervised token is left.
        cut_items, cut_tokens: items that were shortened, and text tokens cut from them.
        lengths, labels: positions and supervised tokens of each item (without BOS); empty without a tokenizer.
        media: modality -> media of each item. media_bytes: most bytes of an item's media, as workers hand them on.
    """

    entries: int | None = None
    items: int = 0
    read: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)
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


def probe(
    dataset: TaskDataset, tokenizer: Tokenizer | None, count: int = 32, shown: int = 1, deadline: float = 0.0
) -> Probe:
    """Look at `count` items of a dataset, evenly over its list, as training reads them in epoch 0; show the first.

    Of shards that are read in sequence these are the first ones, and of remote shards none.

    Args:
        tokenizer: None where it is not there yet: then only media are tried.
        deadline: `time.monotonic` value after which no more media are opened; 0 for none.
    """
    found, task = Probe(dataset.length), dataset.parts.task
    for name, read, rng in _items(dataset, count):
        found.items += 1
        try:
            with sample_errors:
                record = read()
                kind = rng.choice(dataset.kinds) if len(dataset.kinds) > 1 else dataset.kinds[0]
                rendered = task.render(record, kind, Training(rng), None, dataset.prompt_only)
                tokens = None if tokenizer is None else task.tokenize(rendered, tokenizer, dataset.rows)
                sample = _shown(rendered, tokens, tokenizer)
        except ValueError as error:
            found.refused.append(f"{name}: {error}")
            found.samples.append({"id": name, "text": f"cannot be rendered: {error}"})
            continue
        found.samples.append(sample)
        if tokens is not None:
            _count_tokens(found, rendered, tokens, dataset, tokenizer)
        if deadline and time.monotonic() > deadline:
            continue
        found.read += 1
        try:
            mode = Training(rng) if dataset.config.augment else EVALUATION
            files = [(modality, file) for modality in kind.modalities for file in record.files_of(modality)]
            media = [dataset.media.load(*file, mode) for file in files]
            found.media_bytes = max(found.media_bytes, sum(medium.nbytes for medium in media))
        except (ValueError, OSError) as error:
            found.unreadable.append(f"{record.id}: {error}")
    del found.samples[shown:]
    return found


def _items(dataset: TaskDataset, count: int) -> Iterator[tuple[str, Callable[[], Record], random.Random]]:
    """(name, reads the record, the random state with which epoch 0 reads it) of items evenly over the dataset."""
    if not dataset.sequential:
        step = (len(dataset) - 1) / max(min(count, len(dataset)) - 1, 1)
        for index in (round(i * step) for i in range(min(count, len(dataset)))):
            yield f"#{index}", partial(dataset.record, index), dataset.rng(0, index)
        return
    shard, number = dataset.lists[0][0], -1
    if not is_local(shard.url):
        return

    def lost(reason: str) -> Record:
        raise MediaError(shard.url, reason)

    try:
        for number, sample in islice(samples_in_sequence(shard), count):
            yield f"#{number}", partial(dataset.parse, shard, sample), dataset.rng(0, 0, 0, number)
    except ShardLost as error:  # it stands for the rest
        yield f"#{number + 1}", partial(lost, error.reason), dataset.rng(0)


def _shown(rendered: Rendered, tokens: TokenizedSample | None, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """A sample as text, media as ``<image x32>``, what is supervised between `OPEN` and `CLOSE`."""
    if tokens is None:
        texts = [f"<{s.modality}>" * s.count if isinstance(s, Media) else _marked(s.text, s.supervised)
                 for s in rendered.segments]  # fmt: skip
        return {"id": rendered.id, "text": "".join(texts)}
    slots = {place: slot for slot in tokens.slots for place in range(slot.start, slot.start + slot.length)}
    supervised, texts = [label != IGNORE for label in tokens.labels], []
    for (slot, loss), run in groupby(range(len(tokens)), lambda place: (slots.get(place), supervised[place])):
        ids = [tokens.input_ids[place] for place in run]
        if slot is None:
            texts.append(_marked(tokenizer.decode(ids, skip_special=False), loss))
        else:
            texts.append(f"<{slot.modality} x{slot.length}>")
    sizes = {"positions": len(tokens), "supervised": sum(supervised), "cut": tokens.cut}
    return {"id": rendered.id, "text": "".join(texts), **sizes}


def _marked(text: str, supervised: bool) -> str:
    text = text.replace("\n", "\\n")
    return OPEN + text + CLOSE if supervised else text


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
    for modality in dataset.modalities:
        shown = sum(slot.count for slot in tokens.slots if slot.modality == modality)
        found.media.setdefault(modality, []).append(shown)
