"""Finding the checkpoint that a run goes on from, and whether it may."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from chatbridge.common.checkpoint import CONFIG, find_latest, load_trainer, load_weights, resolve_checkpoint
from chatbridge.common.ledger import join_counts
from chatbridge.runners.config import TrainingConfig
from chatbridge.runners.record import changes, refuse

logger = logging.getLogger("chatbridge")


@dataclass
class Resumed:
    """A checkpoint that the run goes on from.

    Attributes:
        folder: where it is. weights: trainable tensors. trainer: everything else.
        accepted: changes of the configuration since then that the user allows, a line each.
        accepts_new_lanes: whether streams may begin a new epoch where the number of readers has changed.
    """

    folder: Path
    weights: dict[str, Tensor]
    trainer: dict[str, Any]
    accepted: list[str]
    accepts_new_lanes: bool

    @property
    def reading(self) -> list[dict[str, Any]]:
        """What every rank of then had read."""
        return self.trainer["reading"]

    def ledger_of(self, rank: int, world: int) -> Mapping[str, Any]:
        """Counts that a rank goes on with: its own, or all ranks' on the first where their number has changed."""
        if len(self.reading) == world:
            return self.reading[rank]["ledger"]
        return join_counts(state["ledger"] for state in self.reading) if rank == 0 else {}


def find_resumable(config: TrainingConfig, text: str, hashes: Mapping[str, Any], world: int) -> Resumed | None:
    """The checkpoint that ``run.resume`` means; None to start from the beginning.

    Args:
        text: the configuration, as YAML. hashes: of the annotation files. world: processes now.

    Raises:
        ValueError: the checkpoint is damaged, or was made by a configuration that means something else.
    """
    if config.resume is None:
        return None
    folder = find_latest(config.output_dir) if config.resume == "auto" else resolve_checkpoint(config.resume)
    if folder is None:
        return None
    trainer = load_trainer(folder)
    before = (folder / CONFIG).read_text(encoding="utf-8")
    found = changes(before, text, trainer.get("annotations", {}), hashes)
    accepted = refuse(found, config.accept_changes, folder)
    if trainer["world"] != world:
        logger.warning(
            "%s was written by %d processes, now there are %d: the same samples make up every step, in other parts",
            folder.name, trainer["world"], world,
        )  # fmt: skip
    lanes = any(name in config.accept_changes for name in ("run.num_workers", "world"))
    return Resumed(folder, load_weights(folder), trainer, accepted, lanes)
