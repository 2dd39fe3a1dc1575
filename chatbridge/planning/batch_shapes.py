"""The batches that a run's datasets will give each GPU: their shapes, at worst and as expected.

Shape letters as in `chatbridge.common.batch`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, repeat, takewhile
from typing import Any

from chatbridge.common.batch import MIXED
from chatbridge.datasets.base import TaskDataset
from chatbridge.datasets.collate import TokenBudget, first_fit
from chatbridge.planning.dataset_probe import Probe

TRIALS = 256
"""Batches that are put together, by length alone, to learn how long they are."""

SIGMAS = 5.0
"""Deviations above its mean at which a dataset's part of a mixed batch is taken at worst: more come up in less than one
batch of a million."""


@dataclass(frozen=True)
class MediaBatch:
    """Media of one modality in one rank's batch: `count` of them (N), of `steps` frames or clips (T) each."""

    count: float
    steps: int
    step_shape: tuple[int, ...]


@dataclass(frozen=True)
class BatchShape:
    """One rank's batch.

    Attributes:
        samples: how many there are in it. length: of a row, L, BOS and padding included.
        supervised: positions with loss in the whole batch, K.
        media: by modality.
        rows: B; None gives each sample a row of its own, packed batches have fewer.
    """

    samples: float
    length: float
    supervised: float
    media: Mapping[str, MediaBatch]
    rows: float | None = None

    @property
    def positions(self) -> float:
        """B * L."""
        return (self.samples if self.rows is None else self.rows) * self.length

    def repeated(self, times: int) -> BatchShape:
        """So many of these batches in one."""
        media = {m: replace(one, count=one.count * times) for m, one in self.media.items()}
        rows = None if self.rows is None else self.rows * times
        return BatchShape(self.samples * times, self.length, self.supervised * times, media, rows)

    def __hash__(self) -> int:
        return hash((self.samples, self.length, self.supervised, self.rows, *sorted(self.media.items(), key=str)))


@dataclass(frozen=True)
class PlannedDataset:
    """The batches of one dataset of the mixture, or of all of them together.

    Attributes:
        name: of the dataset, or `MIXED`. kind: its task kinds, as written.
        share: of the steps that read it (1 for all together). batch_size: samples over all ranks.
        worst: batches that can come up, one of which takes the most memory: samples are as long as the task allows or,
            where a budget holds more of them then, as short as they come; all text is supervised.
        expected: what the probe measured; the first of `worst` where there was nothing to probe.
        measured: whether there was.
    """

    name: str
    kind: str
    share: float
    batch_size: int
    worst: list[BatchShape]
    expected: BatchShape
    measured: bool


class SampleStatistics:
    """What is known of a dataset's samples, or taken at worst.

    Args:
        dataset: its files need not be there. share: of the mixture.
        probe: what a first look found, if there could be one. bos: 1 where samples begin with BOS, else 0.

    Attributes:
        measured: whether there was something to probe.
        limit: positions of the longest sample there can be, BOS included; text: of them, those that may have loss.
        lengths: of the samples looked at, BOS included; the limit alone where there were none.
        labels: supervised positions of a sample, on average.
        media, most: modality -> media of a sample, on average and at most.
    """

    def __init__(self, dataset: TaskDataset, share: float, probe: Probe | None, bos: int):
        self.config, self.share = dataset.config, share
        self.measured = probe is not None and bool(probe.lengths)
        kinds, task = dataset.kinds, dataset.parts.task
        self.most = {m: 1.0 for kind in kinds for m in kind.modalities}
        self.media = {m: sum(m in kind.modalities for kind in kinds) / len(kinds) for m in self.most}
        if self.measured:
            self.most = {m: float(max(counts)) for m, counts in probe.media.items()}
            self.media = {m: sum(counts) / len(counts) for m, counts in probe.media.items()}
        self._shapes = {m: tuple(dataset.processors[m].shape) for m in self.most}
        shown = int(sum(count * dataset.rows[m] for m, count in self.most.items()))
        self.text = task.max_txt_len if task.budget == "text" else max(1, task.max_txt_len - shown)
        self.limit = shown + self.text + bos
        self.lengths = [length + bos for length in probe.lengths] if self.measured else [self.limit]
        self.labels = sum(probe.labels) / len(probe.labels) if self.measured else float(self.text)

    def batch(
        self, samples: float, length: float, supervised: float, media: Mapping[str, float], rows: float | None = None
    ) -> BatchShape:
        found = {m: MediaBatch(samples * n, self._shapes[m][0], self._shapes[m][1:]) for m, n in media.items()}
        return BatchShape(samples, length, supervised, found, rows)

    def worst(self, samples: int, budget: int | None, pack: int | None) -> list[BatchShape]:
        """Batches of one rank, one of which takes the most memory."""
        limit = min(self.limit, pack or budget or self.limit)
        if budget is None:
            rows = None if pack is None else math.ceil(samples / max(1, pack // limit))
            return [self.batch(samples, pack or limit, samples * self.text, self.most, rows)]
        found = []
        # A budget is worst for attention and loss when samples are long, for encoders when they are short.
        for length in dict.fromkeys((limit, max(1, min(*self.lengths, limit - self.text + 1)))):
            if pack is None:
                rows = math.ceil(budget / length)
                samples, length = rows, budget // rows
            else:
                rows = max(1, budget // pack)
                samples = rows * max(1, pack // length)
            supervised = rows * (pack or length) * self.text / self.limit
            found.append(self.batch(samples, pack or length, supervised, self.most, rows))
        return found


def planned_dataset(name: str, known: SampleStatistics, world: int, parts: int = 1) -> PlannedDataset:
    """The shapes of one dataset's batches over `world` processes, each batch cut into so many parts."""
    config = known.config
    size = max(1, config.batch_size // parts)
    budget = None if config.batch_tokens is None else max(1, config.batch_tokens // parts // world)
    how = (max(1, size // world), budget, config.pack)
    worst = known.worst(*how)
    expected = worst[0]
    if known.measured:
        samples, length, rows = _average([(1.0, known)], *how)
        expected = known.batch(samples, length, samples * known.labels, known.media, rows)
    return PlannedDataset(name, config.kind, known.share, size, worst, expected, known.measured)


def planned_mixture(
    datasets: Sequence[SampleStatistics], batch_size: int, world: int, parts: int = 1
) -> PlannedDataset:
    """The shapes of mixed batches of `batch_size` samples over `world` ranks, each cut into so many parts.

    At worst one dataset gives as many samples as it ever will, and every row is as long as the longest there can be.
    """
    size = max(1, batch_size // parts)
    samples = max(1, size // world)
    length, text = max(known.limit for known in datasets), max(known.text for known in datasets)
    worst = []
    for known in datasets:
        mean = samples * known.share
        count = min(samples, math.ceil(mean + SIGMAS * math.sqrt(mean * (1 - known.share))))
        rest = (samples - count) / max(1e-9, 1 - known.share)
        counts = [count if other is known else rest * other.share for other in datasets]
        worst.append(BatchShape(samples, length, samples * text, _joined(datasets, counts, "most")))
    _, mean, _ = _average([(known.share, known) for known in datasets], samples)
    supervised = samples * sum(known.share * known.labels for known in datasets)
    media = _joined(datasets, [samples * known.share for known in datasets], "media")
    expected = BatchShape(samples, mean, supervised, media)
    kinds = " + ".join(dict.fromkeys(known.config.kind for known in datasets))
    return PlannedDataset(MIXED, kinds, 1.0, size, worst, expected, all(known.measured for known in datasets))


def _average(
    datasets: Sequence[tuple[float, SampleStatistics]], samples: int, budget: int | None = None, pack: int | None = None
) -> tuple[float, float, float | None]:
    """Samples, length and rows (None: one for each sample) of one rank's batches on average.

    Batches are put together by the data loader's own rules, from lengths drawn among those known.

    Args:
        datasets: with their share of the samples.
    """
    rng, count, rows, positions = random.Random(0), 0, 0, 0
    lengths = [length for _, known in datasets for length in known.lengths]
    weights = list(accumulate(share / len(known.lengths) for share, known in datasets for _ in known.lengths))

    def draw(number: int) -> list[int]:
        drawn = rng.choices(lengths, cum_weights=weights, k=number)
        return [min(length, pack or budget or length) for length in drawn]

    for _ in range(TRIALS):
        drawn, budgeted = draw(samples), TokenBudget(budget, pack) if budget else None
        if budgeted:
            drawn = list(takewhile(budgeted.add, chain.from_iterable(map(draw, repeat(1)))))
        packed = [[i] for i in range(len(drawn))] if pack is None else first_fit(drawn, pack)
        count += len(drawn)
        rows += len(packed)
        positions += len(packed) * max(sum(drawn[i] for i in row) for row in packed)
    own_rows = budget is None and pack is None
    return count / TRIALS, positions / rows, None if own_rows else rows / TRIALS


def _joined(datasets: Sequence[SampleStatistics], counts: Sequence[float], which: str) -> dict[str, MediaBatch]:
    """The media of so many samples of each dataset."""
    media: dict[str, MediaBatch] = {}
    for known, count in zip(datasets, counts, strict=True):
        for modality, more in known.batch(count, 0, 0, getattr(known, which)).media.items():
            before = media.get(modality)
            media[modality] = more if before is None else replace(before, count=before.count + more.count)
    return media


def shares(section: Mapping[str, Any], sizes: Mapping[str, int], mixture: str) -> dict[str, float]:
    """Dataset -> its share of the steps (of the samples, where they are mixed), as the mixture will draw them.

    Args:
        section: the ``datasets:`` section. sizes: entries of those whose size is known: a dataset without a weight
            takes its size in batches (in samples), and 1 where the size is not known.
        mixture: ``mixture.mode``.
    """
    if mixture == "round_robin":
        return {name: 1.0 / len(section) for name in section}
    weights = {}
    for name, config in section.items():
        known = max(1, sizes.get(name, 0) // (1 if mixture == "mixed" else config.batch_size))
        weights[name] = config.weight if config.weight is not None else float(known)
    total = sum(weights.values())
    return {name: weight / total if total else 0.0 for name, weight in weights.items()}
