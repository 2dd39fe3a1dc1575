"""What can be known of a run without its weights: ``train.py --check`` prints it, and a plan begins with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml
from torch import nn

from chatbridge.common.checkpoint import resolve_checkpoint
from chatbridge.common.optim import build_optimizers
from chatbridge.common.read_mode import Training
from chatbridge.common.registry import DATASETS, LOGGERS, MODELS
from chatbridge.common.run_folder import check_folder
from chatbridge.common.schema import ConfigError
from chatbridge.common.shared_memory import worker_notes
from chatbridge.datasets.base import Parts, TaskDataset
from chatbridge.datasets.reading import check_shapes
from chatbridge.models.chatbridge import ChatBridgeConfig
from chatbridge.models.simulation import check_media, needs_content
from chatbridge.processors.tokenizer import Tokenizer
from chatbridge.runners.assembly import Assembly, check_batch_sizes, check_numbered
from chatbridge.runners.config import TrainingConfig
from chatbridge.runners.evaluation_config import EvaluationConfig, check_evaluation
from chatbridge.runners.strategy import check_backend
from chatbridge.weights.inspection import weight_problems

SAMPLES_TRIED = 8
"""Samples of a dataset of which one at least must be readable."""


@dataclass
class Findings:
    """Everything found at once, not only the first of it.

    Attributes:
        awaited: what the configuration names and the disk does not hold yet, one line each.
        problems: what is wrong, one line each.
        tokenizer: None where it is not there or not readable.
        model: on the meta device; None where it cannot be built there.
        optimizers: of a training run, over the model's parameters.
        datasets: "datasets.<name>" or "validation.<name>" -> those that could be opened.
        outlines: the same, and those whose files are awaited, of which kinds and processors are known.
    """

    awaited: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tokenizer: Tokenizer | None = None
    model: nn.Module | None = None
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    datasets: dict[str, TaskDataset] = field(default_factory=dict)
    outlines: dict[str, TaskDataset] = field(default_factory=dict)

    def attempt(self, step: Callable[[], Any]) -> Any:
        """The step's result, or None when it failed (the problems are noted, each once)."""
        try:
            return step()
        except (ValueError, OSError) as error:
            lines = error.problems if isinstance(error, ConfigError) else str(error).splitlines()
            self.problems += [line for line in lines if line not in self.problems]
        return None


def examine(assembly: Assembly, world: int = 1, build: Callable[[], nn.Module] | None = None) -> Findings:
    """Try every part of a run, each on its own, built as a run builds it; of model and weights, shapes and types only.

    A part whose files are awaited is left alone; datasets are opened even while the tokenizer is awaited.

    Args:
        world: how many processes the batches will be shared by.
        build: makes the model, instead of `architecture`.
    """
    config = assembly.config
    found = Findings(awaited=[str(missing) for missing in assembly.loaded.awaited])
    found.model = found.attempt(build or (lambda: architecture(assembly)))
    if not found.problems:
        found.problems += weight_problems(config.model, found.model, lambda key: _awaits(assembly, key))
    if not _awaits(assembly, "tokenizer" if config.tokenizer else "model.llm"):
        found.tokenizer = found.attempt(lambda: assembly.tokenizer)
        if found.tokenizer is not None:
            found.attempt(assembly.check_vocabulary)
    task, processors = found.attempt(lambda: assembly.task), found.attempt(lambda: assembly.processors)
    if task is not None and processors is not None:
        _open_datasets(assembly, found, Parts(task, found.tokenizer, assembly.rows, processors, config.run.seed))
    found.attempt(lambda: check_batch_sizes(config, world))
    found.attempt(lambda: check_folder(config.run.output_dir))
    if isinstance(config.run, EvaluationConfig) and task is not None:
        found.attempt(lambda: check_evaluation(config.run, config.validation, task, assembly.rows))
    elif isinstance(config.run, TrainingConfig):
        _examine_training(assembly, found, world)
    return found


def architecture(assembly: Assembly) -> nn.Module | None:
    """The model on the meta device. While the language model is awaited, all that is around it.

    None where a part of the user's own cannot be built without numbers.

    Raises:
        ValueError: parts that do not go together.
    """
    config = assembly.config.model
    awaited = isinstance(config, ChatBridgeConfig) and _awaits(assembly, "model.llm")
    try:
        with torch.device("meta"):
            return MODELS.build(config, **({"llm": _MissingLanguageModel()} if awaited else {}))
    except RuntimeError as error:
        if needs_content(error):
            return None
        raise ValueError(f"model: cannot be built: {str(error).strip().splitlines()[0]}") from error


class _MissingLanguageModel(nn.Module):
    """Stands for a language model that is still to be fetched."""

    width = 1


def _open_datasets(assembly: Assembly, found: Findings, parts: Parts) -> None:
    sent: set[tuple[str, tuple[int, ...]]] = set()
    for section in ("datasets", "validation"):
        for name in getattr(assembly.config, section):
            dataset = found.attempt(lambda s=section, n=name: _build_dataset(assembly, s, n, parts))
            if dataset is not None:
                found.outlines[f"{section}.{name}"] = dataset
                if not _awaits(assembly, f"{section}.{name}."):
                    found.datasets[f"{section}.{name}"] = dataset
                _check_shapes(assembly, found, f"{section}.{name}", dataset, sent)


def _build_dataset(assembly: Assembly, section: str, name: str, parts: Parts) -> TaskDataset:
    """A dataset or, while its files are awaited, as much of it as is known without them."""
    settings = getattr(assembly.config, section)[name]
    # An evaluation asks questions that need no answer; held-out data of a training run needs them.
    prompt_only = isinstance(assembly.config.run, EvaluationConfig)
    if _awaits(assembly, f"{section}.{name}."):
        return TaskDataset(settings, name, parts, prompt_only, getattr(settings, "media", None))
    dataset = DATASETS.build(settings, name, parts, prompt_only)
    if section == "validation" and (prompt_only or assembly.config.run.validate_every):
        check_numbered(name, dataset)
    return dataset


def _check_shapes(assembly: Assembly, found: Findings, where: str, dataset: TaskDataset, sent: set) -> None:
    """What processors give for a dataset's media, through the encoders that will be given it."""
    if not isinstance(assembly.config.model, ChatBridgeConfig):  # somebody's own model has ways of its own
        return
    bridges = {m: (name, b) for name, b in assembly.config.model.bridges.items() for m in b.modalities}
    for modality in {modality: None for kind in dataset.kinds for modality in kind.modalities}:
        shape = tuple(dataset.processors[modality].shape)
        if (modality, shape) not in sent:
            sent.add((modality, shape))
            own = f"{where}." if modality in dataset.config.processors else ""
            found.attempt(lambda m=modality, o=own, s=shape: check_media(*bridges[m], f"{o}processors.{m}", s))


def _examine_training(assembly: Assembly, found: Findings, world: int) -> None:
    config = assembly.config
    run: TrainingConfig = config.run
    opened = {name: found.datasets.get(f"datasets.{name}") for name in config.datasets}
    if config.mixture.mode == "mixed":
        found.attempt(lambda: check_shapes(filter(None, opened.values())))
    if None not in opened.values():
        assembly.datasets = opened  # no need to open them a second time
        mixture = found.attempt(lambda: assembly.mixture(run.total_steps * run.accum_grad_iters, run.seed))
        if mixture is not None and found.tokenizer is not None:
            found.attempt(lambda: assembly.batches(mixture, 0, world, run.num_workers, pin=False))
    if found.model is not None:
        optimizers = found.attempt(lambda: build_optimizers(found.model.named_parameters(), run))
        found.optimizers = optimizers or []
    if run.compile is not None:
        found.attempt(lambda: check_backend(run.compile))
    if run.resume not in (None, "auto"):
        found.attempt(lambda: resolve_checkpoint(run.resume))
    for logger in run.loggers:
        found.attempt(lambda one=logger: LOGGERS.build(one))


def check(assembly: Assembly) -> int:
    """Print what is wrong, what is still to be fetched, and what the data holds; 0 when nothing is wrong, else 1.

    Of a YAML with a base, also what both say together.
    """
    tree = assembly.loaded.tree
    if len(tree.files) > 1:
        print("# " + " over ".join(map(str, tree.files)))
        print(yaml.safe_dump(tree.values, sort_keys=False, allow_unicode=True))
    found = examine(assembly)
    sizes = {}
    if not found.problems:
        for name, dataset in found.datasets.items():
            size = found.attempt(lambda n=name, d=dataset: _sample_bytes(n, d, found.tokenizer))
            if size is not None and name.startswith("datasets."):
                sizes[dataset.name] = size
    for missing in found.awaited:
        print(f"to fetch: {missing}")
    for name, dataset in found.datasets.items():
        kinds = "%".join(kind.name for kind in dataset.kinds)
        size = "unknown" if dataset.length is None else f"{dataset.length:,}"
        print(f"{name}: {size} entries of {kinds}, batch size {dataset.config.batch_size}")
        for line in dataset.skipped[:5]:
            print(f"  skipped: {line}")
    for note in worker_notes(assembly.config, sizes, world=1):
        print(note)
    for problem in found.problems:
        print(f"error: {problem}", file=sys.stderr)
    if not found.problems:
        print(f"{assembly.loaded.source}: ok" + (", once the above is there" if found.awaited else ""))
    return 1 if found.problems else 0


def _sample_bytes(name: str, dataset: TaskDataset, tokenizer: Tokenizer | None) -> int | None:
    """Bytes of a sample's media. Raises ValueError where not one of some samples, evenly over the set, can be read."""
    if dataset.sequential:  # its shards were looked into when it was opened, as far as they are here
        return None
    size, first = len(dataset), None
    for index in dict.fromkeys(round(i * (size - 1) / (SAMPLES_TRIED - 1)) for i in range(SAMPLES_TRIED)):
        rng = dataset.rng(0, index)
        try:
            record, kind = dataset.record(index), dataset.kinds[0]
            if tokenizer is None:
                media = [
                    dataset.media.load(m, file, Training(rng)) for m in kind.modalities for file in record.files_of(m)
                ]
            else:
                example = dataset.read(record, kind) if dataset.prompt_only else dataset.draw(record, rng)
                media = [medium for several in example.media.values() for medium in several]
            return sum(medium.nbytes for medium in media)
        except ValueError as error:
            first = first or error
    raise ValueError(f"{name}: not one of {min(SAMPLES_TRIED, size)} samples tried can be used; the first: {first}")


def _awaits(assembly: Assembly, *prefixes: str) -> bool:
    return any(m.key.startswith(prefixes) for m in assembly.loaded.awaited)
