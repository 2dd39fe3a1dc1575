"""From a typed configuration to live parts, every one by its registered name."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from chatbridge.common.config import Config, LoadedConfig
from chatbridge.common.registry import DATASETS, MODELS, TASKS
from chatbridge.contracts import RowsOf, Task
from chatbridge.datasets.base import Parts, TaskDataset
from chatbridge.datasets.held_out import HeldOut
from chatbridge.datasets.mixture import Component, Mixture, SampleMixture, StepMixture
from chatbridge.datasets.reading import BatchStream, MixtureReader, check_shapes
from chatbridge.processors.base import build_processors
from chatbridge.processors.tokenizer import Tokenizer, load_tokenizer
from chatbridge.weights import filling_on
from chatbridge.weights.language_model import check_vocabulary, read_config

logger = logging.getLogger("chatbridge")


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
        return build_processors(self.config.processors, "processors")

    @cached_property
    def rows(self) -> Mapping[str, RowsOf]:
        """Modality -> how many rows a medium of a shape becomes; empty for a model that does not say."""
        rows_of = getattr(MODELS.target_of(self.config.model), "rows_of", None)
        return rows_of(self.config.model) if rows_of is not None else {}

    @cached_property
    def parts(self) -> Parts:
        return Parts(self.task, self.tokenizer, self.rows, self.processors, self.config.run.seed)

    def model(self, device: torch.device | None = None) -> torch.nn.Module:
        """The model, seeded, with every weight its configuration names; files are read straight onto `device`."""
        self.check_vocabulary()
        torch.manual_seed(self.config.run.seed)
        with filling_on(device):
            return MODELS.build(self.config.model)

    def check_vocabulary(self) -> None:
        """Raise ValueError when the tokenizer is not the language model's, before any weight is read."""
        folder = getattr(getattr(self.config.model, "llm", None), "path", None)
        if not folder or not (Path(folder) / "config.json").is_file():
            return
        rows = read_config(folder).get("vocab_size")
        if isinstance(rows, int):
            check_vocabulary(self.tokenizer.vocab_size, rows, self.config.tokenizer or folder, folder)

    @cached_property
    def datasets(self) -> dict[str, TaskDataset]:
        """The training mixture's datasets."""
        return self._build(self.config.datasets, prompt_only=False)

    def validation(self, prompt_only: bool = False) -> dict[str, TaskDataset]:
        """The held-out datasets, with their answers or (`prompt_only`) without.

        Raises:
            ValueError: one that cannot be read, or not in order.
        """
        built = self._build(self.config.validation, prompt_only)
        for name, dataset in built.items():
            check_numbered(name, dataset)
        return built

    def _build(self, section: dict[str, Any], prompt_only: bool) -> dict[str, TaskDataset]:
        built = {name: DATASETS.build(config, name, self.parts, prompt_only) for name, config in section.items()}
        for name, dataset in built.items():
            for line in dataset.skipped[:5]:
                logger.warning("dataset '%s' leaves out %s", name, line)
            if len(dataset.skipped) > 5:
                logger.warning("dataset '%s' leaves out %d more", name, len(dataset.skipped) - 5)
        return built

    def mixture(self, steps: int, seed: int) -> Mixture:
        """Which samples each of `steps` batches reads. Weights left out are sizes, in batches or (mixed) samples."""
        section, components = self.config.mixture, []
        for name, dataset in self.datasets.items():
            config, length = dataset.config, dataset.length
            if length is None and config.weight is None:
                raise ValueError(
                    f"datasets.{name}: how many samples it has is not known; give it a weight, or an index"
                )
            weight = config.weight
            if weight is None:
                weight = length if section.mode == "mixed" else max(1, length // config.batch_size)
            streamed = dataset.sequential or config.batch_tokens is not None
            order = None if streamed else dataset.order(seed)
            components.append(Component(name, length, weight, config.batch_size, order, streamed))
        if section.mode == "mixed":
            return SampleMixture(components, seed, steps, section.batch_size)
        return StepMixture(components, seed, steps, section.mode)

    def batches(self, mixture: Mixture, rank: int, world: int, workers: int, pin: bool) -> BatchStream:
        """Batches of this rank, from the first step or wherever a saved state says.

        Raises:
            ValueError: when a batch size cannot be shared evenly among the ranks, packing does not go with the task, or
                datasets that share batches give media of different shapes.
        """
        check_batch_sizes(self.config, world)
        if self.config.mixture.mode == "mixed":
            check_shapes(self.datasets.values())
        collator = self.task.collator(self.tokenizer)
        reader = MixtureReader(list(self.datasets.values()), collator, mixture.seed, rank, world, workers)
        return BatchStream(reader, mixture, workers, pin)

    def held_out(self, rank: int, world: int, batches: int | None) -> Iterator[HeldOut]:
        """This rank's share of every validation set, answers included, in order.

        Args:
            batches: of each set at most; None takes all.
        """
        collator = self.task.collator(self.tokenizer)
        for dataset in self.validation().values():
            yield HeldOut(dataset, collator, rank, world, batches)


def check_numbered(name: str, dataset: TaskDataset) -> None:
    """Raise ValueError for a validation set that can only be read in sequence."""
    if dataset.sequential:
        raise ValueError(f"validation.{name}: held-out samples need numbers: local .tar files, or annotations")


def check_batch_sizes(config: Config, world: int) -> None:
    """Raise ValueError for batch sizes that the ranks cannot share evenly, a line each."""
    sizes = {f"datasets.{name}": d.batch_size for name, d in config.datasets.items() if d.batch_tokens is None}
    if config.mixture.mode == "mixed":
        sizes = {"mixture": config.mixture.batch_size}
    problems = [
        f"{where}.batch_size: {size} samples cannot be shared by {world} processes; take a multiple of {world}"
        for where, size in sizes.items()
        if size % world
    ]
    if problems:
        raise ValueError("\n".join(problems))
