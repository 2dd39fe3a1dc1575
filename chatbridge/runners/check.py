"""What can be known of a run without its weights: ``train.py --check`` prints it, and a plan begins with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from chatbridge.common.registry import DATASETS
from chatbridge.common.schema import ConfigError
from chatbridge.datasets.builder import Parts, TaskDataset
from chatbridge.datasets.reading import check_shapes
from chatbridge.processors.tokenizer import Tokenizer
from chatbridge.runners.assembly import Assembly, check_batch_sizes
from chatbridge.runners.evaluation import EvaluationConfig


@dataclass
class Findings:
    """Everything found at once, not only the first of it.

    Attributes:
        awaited: what the configuration names and the disk does not hold yet, one line each.
        problems: what is wrong, one line each.
        tokenizer: None where it is not there or not readable.
        datasets: "datasets.<name>" or "validation.<name>" -> those that could be opened.
    """

    awaited: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tokenizer: Tokenizer | None = None
    datasets: dict[str, TaskDataset] = field(default_factory=dict)

    def attempt(self, step: Callable[[], Any]) -> Any:
        """The step's result, or None when it failed (the problems are noted)."""
        try:
            return step()
        except ConfigError as error:
            self.problems += error.problems
        except (ValueError, OSError) as error:
            self.problems += str(error).splitlines()
        return None


def examine(assembly: Assembly, world: int = 1) -> Findings:
    """Try every part of a run but the model, each on its own.

    A part whose files are awaited is left alone; datasets are opened even while the tokenizer is awaited.

    Args:
        world: how many processes the batches will be shared by.
    """
    config = assembly.config
    found = Findings(awaited=[str(missing) for missing in assembly.loaded.awaited])
    task = found.attempt(lambda: assembly.task)
    processors = found.attempt(lambda: assembly.processors)
    if not _awaits(assembly, "tokenizer" if config.tokenizer else "model.llm"):
        found.tokenizer = found.attempt(lambda: assembly.tokenizer)
        if found.tokenizer is not None:
            found.attempt(assembly.check_vocabulary)
    if task is not None and processors is not None:
        parts = Parts(task, found.tokenizer, assembly.queries, processors, config.run.seed)
        for section, sets in (("datasets", config.datasets), ("validation", config.validation)):
            for name, settings in sets.items():
                if _awaits(assembly, f"{section}.{name}."):
                    continue
                # An evaluation asks questions that need no answer; held-out data of a training run needs them.
                is_open = isinstance(config.run, EvaluationConfig)
                dataset = found.attempt(lambda s=settings, n=name, o=is_open: DATASETS.build(s, n, parts, o))
                if dataset is not None:
                    found.datasets[f"{section}.{name}"] = dataset
    found.attempt(lambda: check_batch_sizes(config, world))
    if config.mixture.mode == "mixed":
        opened = [dataset for name, dataset in found.datasets.items() if name.startswith("datasets.")]
        found.attempt(lambda: check_shapes(opened))
    return found


def check(assembly: Assembly) -> int:
    """Print what is wrong, what is still to be fetched, and what the data holds; 0 when nothing is wrong, else 1."""
    found = examine(assembly)
    for missing in found.awaited:
        print(f"to fetch: {missing}")
    for name, dataset in found.datasets.items():
        kinds = "%".join(kind.name for kind in dataset.kinds)
        size = "unknown" if dataset.length is None else f"{dataset.length:,}"
        print(f"{name}: {size} entries of {kinds}, batch size {dataset.config.batch_size}")
        for line in dataset.skipped[:5]:
            print(f"  skipped: {line}")
    for problem in found.problems:
        print(f"error: {problem}", file=sys.stderr)
    if not found.problems:
        print(f"{assembly.loaded.source}: ok" + (", once the above is there" if found.awaited else ""))
    return 1 if found.problems else 0


def _awaits(assembly: Assembly, *prefixes: str) -> bool:
    return any(m.key.startswith(prefixes) for m in assembly.loaded.awaited)
