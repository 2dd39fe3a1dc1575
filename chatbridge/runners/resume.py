"""Finding the checkpoint that a run goes on from, whether its configuration allows that, and taking it over."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
    newest_first,
    resolve_checkpoint,
)
from chatbridge.common.config import Config
from chatbridge.common.documents import DocumentError, read_yaml
from chatbridge.common.ledger import join_counts
from chatbridge.common.optim import build_optimizers
from chatbridge.common.schema import bind, to_plain
from chatbridge.runners.config import TrainingConfig

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
            known = {field.name for field in dataclasses.fields(run)}
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
        folder, stored = _newest_good(run, damage)
        replaced = [f"checkpoint: {damage} -> {folder.name}, the newest that is good"]
    weights, trainer, before = stored
    found = config_changes(before, config, trainer.get("annotations") or {}, hashes)
    accepted = replaced + check_accepted(found, run.accept_changes, folder)
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


def _newest_good(config: TrainingConfig, damage: CheckpointError) -> tuple[Path, Stored]:
    """The newest checkpoint that is good, where the user agrees to do the steps since then again.

    Raises:
        CheckpointError: with the damage, and what to do.
    """
    for folder in newest_first(config.output_dir):
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


def config_changes(
    before: Mapping[str, Any], now: Config, hashes_before: Mapping[str, Any], hashes_now: Mapping[str, Any]
) -> dict[str, str]:
    """Keys of a configuration that must be the same (`schema.key`) and are not -> "old -> new".

    Args:
        before: as plain values.
        hashes_before, hashes_now: what `file_hashes` gave then and now.
    """
    old, new = _flat(before), _flat(to_plain(now))
    for one, other in ((old, new), (new, old)):  # a bare name stands for {name: it}
        for key in [key for key in one if f"{key}.name" in other]:
            one[f"{key}.name"] = one.pop(key)
    for key in [key for key, value in old.items() if key.endswith(".finish") and value]:  # its earlier name
        old[key.removesuffix("finish") + "preprocess_on"] = old.pop(key)
    found = {}
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and not (_is_free(now, key) or _newer_default(key, old, new)):
            found[key] = f"{_show(old, key)} -> {_show(new, key)}"
    for name in hashes_before.keys() & hashes_now.keys():
        if sorted(hashes_before[name].values()) != sorted(hashes_now[name].values()):
            found[f"datasets.{name}.annotations"] = "the content of the files has changed"
    return found


def check_accepted(found: Mapping[str, str], accepted: Sequence[str], checkpoint: Path) -> list[str]:
    """The changes that the user accepts, one line each.

    Raises:
        ValueError: a change that is not accepted, with all of them.
    """
    lines = {key: f"{key}: {change}" for key, change in found.items()}
    refused = [line for key, line in lines.items() if not any(_under(key, name) for name in accepted)]
    if refused:
        raise ValueError(
            "\n".join([
                f"{checkpoint}: was made by another configuration; going on would be another run:",
                *(f"  {line}" for line in refused),
                "take the old values, another run.output_dir, or name the keys in run.accept_changes",
            ])
        )  # fmt: skip
    return list(lines.values())


def _flat(tree: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {at: tree}
    return {
        key: value
        for name, inner in tree.items()
        for key, value in _flat(inner, f"{at}.{name}" if at else name).items()
    }


def _under(key: str, name: str) -> bool:
    return key == name or key.startswith(name + ".")


def _is_free(config: Any, key: str) -> bool:
    """Whether a key is declared as one that may differ when a run goes on."""
    for name in key.split("."):
        if isinstance(config, dict):
            config = config.get(name)
            continue
        fields = {f.name: f for f in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else {}
        if name not in fields or fields[name].metadata.get("resume") == "free":
            return name in fields
        config = getattr(config, name)
    return False


def _newer_default(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """A key that only one side knows, in a part that both have: a version of the package brought or removed it."""
    if key in old and key in new:
        return False
    parent = key.rpartition(".")[0]
    return all(any(_under(other, parent) for other in side) for side in (old, new)) and parent not in (
        "datasets",
        "model.bridges",
    )


def _show(tree: Mapping[str, Any], key: str) -> str:
    return repr(tree[key]) if key in tree else "(absent)"
