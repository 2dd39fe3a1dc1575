"""The one kind of batch that ``mixture.mode: mixed`` has: samples of every dataset, by their shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chatbridge.common.batch import MIXED
from chatbridge.planning.batches import PlannedDataset, SampleSizes, media_batches
from chatbridge.planning.geometry import BatchShape, Geometry, MediaBatch

SIGMAS = 5.0
"""Deviations above its mean at which a dataset's part of a batch is taken at worst: more come up in less than one batch
of a million."""


@dataclass(frozen=True)
class Ingredient:
    """One dataset of mixed batches.

    Attributes:
        kind: its task kinds, as written. share: of the samples. sizes: of a sample.
        processors: modality -> processor, the dataset's own included. measured: whether there was something to probe.
    """

    kind: str
    share: float
    sizes: SampleSizes
    processors: Mapping[str, Any]
    measured: bool


def planned_mixture(
    ingredients: Sequence[Ingredient], batch_size: int, world: int, geometry: Geometry
) -> PlannedDataset:
    """The shapes of mixed batches of `batch_size` samples over `world` ranks.

    At worst every row is as long as the longest there can be, and the batch has most of every dataset at once.

    Raises:
        ValueError: a modality or shape that nothing here serves.
    """
    samples = max(1, batch_size // world)
    expected_media: dict[str, MediaBatch] = {}
    worst_media: dict[str, MediaBatch] = {}
    for one in ingredients:
        mean = samples * one.share
        most = min(float(samples), math.ceil(mean + SIGMAS * math.sqrt(mean * (1 - one.share))))
        _add(expected_media, media_batches(one.sizes.media, mean, one.processors, geometry))
        _add(worst_media, media_batches(one.sizes.most, most, one.processors, geometry))
    for modality, media in worst_media.items():
        limit = samples * max(one.sizes.most.get(modality, 0.0) for one in ingredients)
        worst_media[modality] = replace(media, count=min(media.count, limit))
    supervised = samples * sum(one.share * one.sizes.labels for one in ingredients)
    expected = BatchShape(samples, _expected_length(ingredients, samples), supervised, expected_media)
    limit, text = max(one.sizes.limit for one in ingredients), max(one.sizes.text for one in ingredients)
    worst = BatchShape(samples, limit, samples * text, worst_media)
    kinds = " + ".join(dict.fromkeys(one.kind for one in ingredients))
    measured = all(one.measured for one in ingredients)
    return PlannedDataset(MIXED, kinds, 1.0, batch_size, worst, expected, measured)


def _add(total: dict[str, MediaBatch], media: Mapping[str, MediaBatch]) -> None:
    for modality, more in media.items():
        before = total.get(modality)
        total[modality] = more if before is None else replace(before, count=before.count + more.count)


def _expected_length(ingredients: Sequence[Ingredient], samples: int) -> float:
    """The mean of the longest of so many samples, each from a dataset drawn by its share."""
    chances: dict[float, float] = {}
    for one in ingredients:
        for length in one.sizes.lengths:
            chances[length] = chances.get(length, 0.0) + one.share / len(one.sizes.lengths)
    mean = below = reached = 0.0
    for length in sorted(chances):
        reached = min(1.0, reached + chances[length])
        mean += length * (reached**samples - below)
        below = reached**samples
    return mean
