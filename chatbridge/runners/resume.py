"""Finding the checkpoint that a run goes on from, and whether it may."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chatbridge.common.checkpoint import (
    CONFIG,
    TRAINER,
    CheckpointError,
    check_sums,
    find_latest,
    load_trainer,
    load_weights,
    older_checkpoints,
    resolve_checkpoint,
)
from chatbridge.common.config import Config
from chatbridge.common.documents import DocumentError, read_yaml
from chatbridge.common.ledger import join_counts
from chatbridge.common.optim import build_optimizers
from chatbridge.common.schema import bind
from chatbridge.runners.config import TrainingConfig
from chatbridge.runners.record import changes, refuse

logger = logging.getLogger("chatbridge")


@dataclass
class Resumed:
    """A checkpoint that the run goes on from.

    Attributes:
        folder: where it is. weights: trainable tensors. trainer: everything else. config: of then, as plain values.
        accepted: changes of the configuration since then that the user allows, a line each.
        accepts_new_workers: whether streams may begin a new epoch where the number of workers has changed.
    """

    folder: Path
    weights: dict[str, Tensor]
    trainer: dict[str, Any]
    config: dict[str, Any]
    accepted: list[str]
    accepts_new_workers: bool

    @property
    def reading(self) -> list[dict[str, Any]]:
        """What every rank of then had read."""
        return self.trainer["reading"]

    def ledger_of(self, rank: int, world: int) -> Mapping[str, Any]:
        """Counts that a rank goes on with: its own, or all ranks' on the first where their number has changed."""
        if len(self.reading) == world:
            return self.reading[rank]["ledger"]
        return join_counts(state["ledger"] for state in self.reading) if rank == 0 else {}

    def load_optimizers(
        self, optimizers: Sequence[torch.optim.Optimizer], model: nn.Module, run: TrainingConfig
    ) -> None:
        """Give optimizers their state, and keep the options of their groups (weight decay, betas) that were accepted.

        PyTorch's state holds these options, too, and maybe what an optimizer adapts among them. So only those are kept
        that the configuration of then would not have made.

        Args:
            run: the ``run:`` section that the optimizers were made by, over the model's parameters.

        Raises:
            ValueError: the state is of other optimizers.
        """
        states, before, now = self.trainer["optimizers"], [], []
        if self.accepted:
            known = {field.name for field in fields(run)}
            then = {name: value for name, value in self.config.get("run", {}).items() if name in known}
            before = build_optimizers(
                model.named_parameters(), bind(type(run), then, str(self.folder / CONFIG), self.folder)
            )
            now = [[dict(group) for group in optimizer.param_groups] for optimizer in optimizers]
        if len(states) != len(optimizers) or (before and _layout(before) != _layout(optimizers)):
            raise ValueError(
                "its optimizers are others, or have other groups of parameters; take the old run.optimizer and "
                "run.decay, or begin a run in another run.output_dir with its weights (model.weights)"
            )
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        for optimizer, old, new in zip(optimizers if before else [], before, now, strict=True):
            for group, was, wanted in zip(optimizer.param_groups, old.param_groups, new, strict=True):
                for name in (was.keys() | wanted.keys()) - {"params"}:
                    if name not in wanted:
                        group.pop(name, None)
                    elif name not in was or was[name] != wanted[name]:
                        group[name] = wanted[name]

    @contextmanager
    def taking_over(self) -> Iterator[None]:
        """Inside, the state becomes that of a run; what does not fit it is a CheckpointError that names the file."""
        try:
            yield
        except Exception as error:
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
            raise CheckpointError(f"{self.folder / TRAINER}: does not fit this run: {reason}") from error


def find_resumable(config: Config, hashes: Mapping[str, Any], world: int) -> Resumed | None:
    """The checkpoint that ``run.resume`` means; None to start from the beginning.

    Args:
        hashes: of the annotation files. world: processes now.

    Raises:
        ValueError: the checkpoint is damaged, or was made by a configuration that means something else.
    """
    run: TrainingConfig = config.run
    if run.resume is None:
        return None
    replaced = []
    try:
        folder = find_latest(run.output_dir) if run.resume == "auto" else resolve_checkpoint(run.resume)
        if folder is None:
            return None
        stored = _read(folder)
    except CheckpointError as damage:
        if run.resume != "auto":
            raise
        folder, stored = _good_one(run, damage)
        replaced = [f"checkpoint: {damage} -> {folder.name}, the newest that is good"]
    weights, trainer, before = stored
    found = changes(before, config, trainer.get("annotations") or {}, hashes)
    accepted = replaced + refuse(found, run.accept_changes, folder)
    if trainer["world"] != world:
        logger.warning(
            "%s was written by %d processes, now there are %d: the same samples make up every step, in other parts",
            folder.name, trainer["world"], world,
        )  # fmt: skip
    workers = any(name in run.accept_changes for name in ("run.num_workers", "world"))
    return Resumed(folder, weights, trainer, before, accepted, workers)


def _layout(optimizers: Sequence[torch.optim.Optimizer]) -> list[Any]:
    """Class and parameters of every optimizer, group by group; accelerate's wrappers are looked into."""
    bare = [getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers]
    return [(type(one), [[id(p) for p in group["params"]] for group in one.param_groups]) for one in bare]


Stored = tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]
"""Of a checkpoint: weights, trainer's state, configuration."""


def _read(folder: Path) -> Stored:
    """All of a checkpoint that is what was written. Raises CheckpointError."""
    check_sums(folder)
    trainer = load_trainer(folder)
    problem = next((name for name, fits in STATE.items() if not fits(trainer.get(name))), None)
    if problem is None and len(trainer["reading"]) != trainer["world"]:
        problem = "reading"
    if problem is not None:
        raise CheckpointError(f"{folder / TRAINER}: damaged (its '{problem}' is missing or not what it should be)")
    try:
        before = read_yaml(folder / CONFIG)
    except DocumentError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(before, dict):
        raise CheckpointError(f"{folder / CONFIG}: is no configuration")
    return load_weights(folder), trainer, before


def _good_one(config: TrainingConfig, damage: CheckpointError) -> tuple[Path, Stored]:
    """The newest checkpoint that is good, where the user agrees to do the steps since then again.

    Raises:
        CheckpointError: with the damage, and what to do.
    """
    for folder in older_checkpoints(config.output_dir):
        try:
            stored = _read(folder)
        except CheckpointError:
            continue
        if DAMAGED in config.accept_changes:
            return folder, stored
        raise CheckpointError(
            f"{damage}; the newest good one is {folder.name}: name '{DAMAGED}' in run.accept_changes to go on from it"
        )
    raise CheckpointError(f"{damage}; there is no good one: restore it, or take another run.output_dir")


DAMAGED = "checkpoint"
"""In ``run.accept_changes``: go on from the newest good checkpoint where the newest is damaged."""


def _count(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and value >= least


def _list_of(*keys: str) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list) and all(isinstance(one, dict) and all(key in one for key in keys) for one in value)
    )


def _nothing_or(kind: type | tuple[type, ...]) -> Callable[[Any], bool]:
    return lambda value: value is None or isinstance(value, kind)


STATE: dict[str, Callable[[Any], bool]] = {
    "step": _count(0), "world": _count(1), "optimizers": _list_of("state", "param_groups"), "scaler": _nothing_or(dict),
    "reading": _list_of("batches", "ledger"), "guard": _nothing_or(dict), "best": _nothing_or((list, tuple)),
    "drawn": _nothing_or(dict), "annotations": _nothing_or(dict),
}  # fmt: skip
"""What a trainer's state holds; older versions wrote some of it not yet."""
