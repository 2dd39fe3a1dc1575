"""The batches that a run's datasets will give each GPU: their shapes, at worst and as expected."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatbridge.datasets.kinds import TaskKind
from chatbridge.datasets.packing import TokenBudget, first_fit
from chatbridge.planning.geometry import BatchShape, Geometry, MediaBatch
from chatbridge.planning.probe import Probe
from chatbridge.tasks.base import Task

TRIALS = 64
"""Batches that are put together, by length alone, to learn how packing and budgets work out."""


@dataclass(frozen=True)
class PlannedDataset:
    """The batches of one dataset of the mixture, or of all of them together.

    Attributes:
        name: of the dataset, or `MIXED`. kind: its task kinds, as written.
        share: of the steps that read it (1 for all together). batch_size: samples over all ranks.
        worst: the batch whose longest sample is at the task's limit and all of whose text is supervised.
        expected: what the probe measured; `worst` where there was nothing to probe.
        measured: whether there was.
    """

    name: str
    kind: str
    share: float
    batch_size: int
    worst: BatchShape
    expected: BatchShape
    measured: bool


@dataclass(frozen=True)
class SampleSizes:
    """What is known of a dataset's samples, or taken at worst.

    Attributes:
        limit: positions of the longest sample there can be, BOS included; text: of them, those that may have loss.
        lengths: of the samples looked at, BOS included; the limit alone where there were none.
        labels: supervised positions of a sample, on average.
        media, most: modality -> media of a sample, on average and at most.
    """

    limit: int
    text: int
    lengths: Sequence[int]
    labels: float
    media: Mapping[str, float]
    most: Mapping[str, float]

    @property
    def mean(self) -> float:
        return sum(self.lengths) / len(self.lengths)


def planned_dataset(
    name: str, config: Any, share: float, world: int, task: Task, processors: Mapping[str, Any], geometry: Geometry,
    probe: Probe | None, bos: int = 1,
) -> PlannedDataset:  # fmt: skip
    """The shapes of one dataset's batches.

    Args:
        config: the dataset's configuration; share: of the mixture's steps; world: processes.
        processors: modality -> processor, the dataset's own included.
        probe: what its first look found, if it could have one. bos: 1 where samples begin with BOS, else 0.

    Raises:
        ValueError: a kind, modality or shape that nothing here serves.
    """
    sizes = sample_sizes(config, task, geometry, probe, bos)
    per_rank = max(1, config.batch_size // world)
    budget = None if config.batch_tokens is None else max(1, config.batch_tokens // world)
    counts, rows, length = _expected(sizes, per_rank, budget, config.pack)
    media = media_batches(sizes.media, counts, processors, geometry)
    expected = BatchShape(counts, length, counts * sizes.labels, media, rows)
    counts, rows, length, supervised = _worst(sizes, per_rank, budget, config.pack)
    worst = BatchShape(counts, length, supervised, media_batches(sizes.most, counts, processors, geometry), rows)
    measured = probe is not None and bool(probe.lengths)
    return PlannedDataset(name, config.kind, share, config.batch_size, worst, expected, measured)


def sample_sizes(config: Any, task: Task, geometry: Geometry, probe: Probe | None, bos: int) -> SampleSizes:
    """What is known of one dataset's samples. Arguments and errors as for `planned_dataset`."""
    kinds = TaskKind.parse_all(config.kind, geometry.model.rows)
    most = {m: 1.0 for kind in kinds for m in kind.modalities}
    mean = {m: sum(m in kind.modalities for kind in kinds) / len(kinds) for m in most}
    if probe is not None and probe.lengths:
        most = {m: float(max(counts)) for m, counts in probe.media.items()}
        mean = {m: sum(counts) / len(counts) for m, counts in probe.media.items()}
    rows = int(sum(count * geometry.bridge(m).queries for m, count in most.items()))
    text = task.max_txt_len if task.budget == "text" else max(1, task.max_txt_len - rows)
    limit = rows + text + bos
    if probe is None or not probe.lengths:
        return SampleSizes(limit, text, [limit], text, mean, most)
    lengths = [length + bos for length in probe.lengths]
    return SampleSizes(limit, text, lengths, sum(probe.labels) / len(probe.labels), mean, most)


def _expected(
    sizes: SampleSizes, samples: int, budget: int | None, pack: int | None
) -> tuple[float, float | None, float]:
    """(samples, rows, length of a row) of one rank's batch, on average.

    Rows of one sample each are as long as the longest of so many draws; rows that are packed, or as many as a budget
    holds, are put together here by the rules that the data loader follows, from lengths drawn among those measured.
    """
    if budget is None and pack is None:
        return samples, None, expected_maximum(sizes.lengths, samples)
    rng, counts, rows, positions = random.Random(0), 0, 0, 0
    for _ in range(TRIALS):
        drawn = [min(rng.choice(sizes.lengths), pack or budget) for _ in range(samples)]
        if budget is not None:
            drawn, budgeted = [], TokenBudget(budget, pack)
            while budgeted.add(length := min(rng.choice(sizes.lengths), pack or budget)):
                drawn.append(length)
        packed = [[i] for i in range(len(drawn))] if pack is None else first_fit(drawn, pack)
        counts += len(drawn)
        rows += len(packed)
        positions += len(packed) * max(sum(drawn[i] for i in row) for row in packed)
    return counts / TRIALS, rows / TRIALS, positions / rows


def _worst(
    sizes: SampleSizes, samples: int, budget: int | None, pack: int | None
) -> tuple[float, float | None, float, float]:
    """(samples, rows, length, supervised positions) that no batch exceeds, each on its own.

    A budget of positions is worst for the encoders when samples are short, for the loss when they are long.
    """
    limit = min(sizes.limit, pack or budget or sizes.limit)
    if budget is None:
        rows = None if pack is None else math.ceil(samples / max(1, pack // limit))
        return samples, rows, pack or limit, samples * sizes.text
    shortest = max(1, min(min(sizes.lengths), sizes.limit - sizes.text + 1))
    rows = budget / limit if pack is None else max(1, budget // pack)
    supervised = max(1.0, budget * sizes.text / sizes.limit)
    return max(1, budget // shortest), rows, pack or limit, supervised


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


def expected_maximum(values: Sequence[float], draws: int) -> float:
    """The mean of the largest of `draws` values drawn from `values` with replacement: a batch is as long as that."""
    ordered, count = sorted(values), len(values)
    return sum(v * (((i + 1) / count) ** draws - (i / count) ** draws) for i, v in enumerate(ordered))


def media_batches(
    counts: Mapping[str, float], samples: float, processors: Mapping[str, Any], geometry: Geometry
) -> dict[str, MediaBatch]:
    """Modality -> the media of so many samples with `counts` of each.

    Raises:
        ValueError: a modality or shape that nothing here serves.
    """
    media = {}
    for modality, count in counts.items():
        geometry.bridge(modality)
        if modality not in processors:
            raise ValueError(f"kind shows '{modality}', which needs a processor under processors")
        steps, *shape = processors[modality].shape
        geometry.encoder_step(modality, tuple(shape))
        media[modality] = MediaBatch(samples * count, steps, tuple(shape))
    return media
