"""From a typed configuration to live parts, every one by its registered name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import DataLoader

from chatbridge.common.batch import MultimodalBatch
from chatbridge.common.config import LoadedConfig
from chatbridge.common.registry import DATASETS, MODELS, PROCESSORS, TASKS
from chatbridge.datasets.builder import AnnotatedDataset, MixtureCollator, MixtureDataset, Parts
from chatbridge.datasets.collate import Collator
from chatbridge.datasets.mixture import Mixture, MixtureSampler, Stream
from chatbridge.processors.base import MediaProcessor
from chatbridge.processors.tokenizer import Tokenizer, load_tokenizer
from chatbridge.tasks.base import Task


class Assembly:
    """Builds the parts of a run when they are asked for, each once.

    Args:
        loaded: the configuration.
    """

    def __init__(self, loaded: LoadedConfig):
        self.loaded = loaded
        self.config = loaded.config

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.config.tokenizer or self.config.model.llm.path)

    @cached_property
    def task(self) -> Task:
        return TASKS.build(self.config.task)

    @cached_property
    def processors(self) -> dict[str, Any]:
        built = {modality: PROCESSORS.build(config) for modality, config in self.config.processors.items()}
        for modality, processor in built.items():
            if not isinstance(processor, MediaProcessor):
                name = PROCESSORS.name_of(self.config.processors[modality])
                raise ValueError(f"processors.{modality}: '{name}' reads text, not media files; name a media processor")
        return built

    @property
    def queries(self) -> dict[str, int]:
        """Modality -> rows that one medium of it becomes."""
        bridges = self.config.model.bridges.values()
        return {modality: b.perceiver.num_queries for b in bridges for modality in b.modalities}

    @cached_property
    def parts(self) -> Parts:
        return Parts(self.task, self.tokenizer, self.queries, self.processors, self.config.run.seed)

    def model(self) -> torch.nn.Module:
        """The model, seeded, with every weight its configuration names."""
        torch.manual_seed(self.config.run.seed)
        return MODELS.build(self.config.model)

    @cached_property
    def datasets(self) -> dict[str, AnnotatedDataset]:
        """The training mixture's datasets."""
        return self._build(self.config.datasets, open=False)

    def validation(self, open: bool = False) -> dict[str, AnnotatedDataset]:
        """The held-out datasets, with their answers or (`open`) without."""
        return self._build(self.config.validation, open)

    def _build(self, section: dict[str, Any], open: bool) -> dict[str, AnnotatedDataset]:
        return {name: DATASETS.build(config, name, self.parts, open) for name, config in section.items()}

    def mixture(self, steps: int, seed: int, mode: str) -> Mixture:
        """Which samples each of `steps` batches reads. Weights left out are sizes in batches."""
        streams = []
        for name, dataset in self.datasets.items():
            size = dataset.config.batch_size
            weight = dataset.config.weight if dataset.config.weight is not None else max(1, len(dataset) // size)
            streams.append(Stream(name, len(dataset), weight, size))
        return Mixture(streams, seed, steps, mode)

    def loader(self, mixture: Mixture, start: int, rank: int, world: int, workers: int, pin: bool) -> DataLoader:
        """Batches of this rank from step `start` on.

        Raises:
            ValueError: when a batch size cannot be shared evenly among the ranks.
        """
        check_batch_sizes(self.config.datasets, world)
        collator = Collator.of(self.tokenizer, self.task.padding, self.task.compat)
        return DataLoader(
            MixtureDataset(list(self.datasets.values())),
            batch_sampler=MixtureSampler(mixture, start, rank, world),
            num_workers=workers,
            collate_fn=MixtureCollator(collator),
            pin_memory=pin,
        )

    def validation_loaders(
        self, rank: int, world: int, batches: int | None
    ) -> Iterator[tuple[str, Iterator[MultimodalBatch]]]:
        """This rank's share of every validation set, answers included, in order."""
        collator = Collator.of(self.tokenizer, self.task.padding, self.task.compat)
        for name, dataset in self._validation_sets.items():
            size = max(1, dataset.config.batch_size // world)
            yield name, _in_order(dataset, collator, rank, world, size, batches)

    @cached_property
    def _validation_sets(self) -> dict[str, AnnotatedDataset]:
        return self.validation()


def _in_order(
    dataset: AnnotatedDataset, collator: Collator, rank: int, world: int, size: int, batches: int | None
) -> Iterator[MultimodalBatch]:
    indices = list(range(len(dataset)))[rank::world]
    starts = list(range(0, len(indices), size))[:batches]
    for start in starts:
        examples = []
        for index in indices[start : start + size]:
            examples += [dataset.read(dataset.record(index), dataset.kinds[0])[0]]
        yield collator(examples, dataset.name)


def check_batch_sizes(section: dict[str, Any], world: int) -> None:
    """Raise ValueError for a batch size that the ranks cannot share evenly."""
    for name, config in section.items():
        if config.batch_size % world:
            raise ValueError(
                f"datasets.{name}.batch_size: {config.batch_size} samples cannot be shared by {world} processes; "
                f"take a multiple of {world}"
            )
