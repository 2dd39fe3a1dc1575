"""Where a run's numbers go (``run.loggers``): JSON lines, TensorBoard, Weights & Biases, or a logger from outside."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chatbridge.common.documents import json_line, json_objects, write_whole
from chatbridge.common.registry import LOGGERS
from chatbridge.common.schema import key
from chatbridge.contracts import Logger


class MetricsLog:
    """All of a run's loggers as one.

    Args:
        loggers: their configurations. folder: the run folder.
        resumed_at: the step a resumed run starts from, 0 for a new one: every step stands once in the end, so that what
            the killed run logged of later steps is dropped, or written over.
        config: the run's whole configuration, for loggers that record it.
    """

    def __init__(self, loggers: Sequence[Any], folder: Path, resumed_at: int = 0, config: dict | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.loggers: list[Logger] = [LOGGERS.build(logger) for logger in loggers]
        for logger in self.loggers:
            logger.start(folder, resumed_at, config or {})

    def write(self, step: int, values: Mapping[str, Any], split: str = "train") -> None:
        """Log one step's numbers and names, some of them nested: ``{"loss": 1.5, "losses": {"images": 1.5}}``."""
        for logger in self.loggers:
            logger.write(step, values, split)

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()


@LOGGERS.register("jsonl")
class JsonLines:
    """``metrics.jsonl``, a line a step with all that is logged."""

    def start(self, folder: Path, resumed_at: int, config: Mapping[str, Any]) -> None:
        file = folder / "metrics.jsonl"
        rows = json_objects(file) if resumed_at else ()
        kept = [row for row in rows if isinstance(row.get("step"), int) and row["step"] <= resumed_at]
        write_whole(file, map(json_line, kept))
        self._file = file.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)

    def write(self, step: int, values: Mapping[str, Any], split: str) -> None:
        self._file.write(json_line({"step": step, "split": split, **values}))

    def close(self) -> None:
        self._file.close()


@LOGGERS.register("tensorboard")
class TensorBoard:
    """Event files in the folder ``tensorboard``; every dataset is a group of its own."""

    def __init__(self) -> None:
        _require("tensorboard")

    def start(self, folder: Path, resumed_at: int, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at or None)

    def write(self, step: int, values: Mapping[str, Any], split: str) -> None:
        group = f"{split}/{values['dataset']}" if "dataset" in values else split
        for name, value in scalars(values).items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


@dataclass(kw_only=True)
class WandbConfig:
    project: str | None = key(None, help="W&B's project; null: as WANDB_PROJECT says")
    entity: str | None = key(None, help="user or team; null: as WANDB_ENTITY says")
    group: str | None = key(None, help="runs that belong together")
    tags: list[str] = key([], help="labels of the run")


@LOGGERS.register("wandb", config=WandbConfig)
class Wandb:
    """Weights & Biases; the key comes from the environment (``WANDB_API_KEY``)."""

    def __init__(self, config: WandbConfig):
        _require("wandb")
        self.settings = {name: value for name, value in asdict(config).items() if value}

    def start(self, folder: Path, resumed_at: int, config: Mapping[str, Any]) -> None:
        import wandb

        # One run there for one folder here, however often it was interrupted.
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        settings = {"dir": str(folder), "config": config, "id": name, "name": folder.name, "resume": "allow"}
        self._run = wandb.init(**settings, **self.settings)

    def write(self, step: int, values: Mapping[str, Any], split: str) -> None:
        self._run.log({f"{split}/{name}": value for name, value in scalars(values).items()}, step=step)

    def close(self) -> None:
        self._run.finish()


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the values, those of a mapping as "losses/images"."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{inner}": number for inner, number in scalars(value).items()}
        elif isinstance(value, (int, float)):
            found[name] = value
    return found


def _require(package: str) -> None:
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise ValueError(f"run.loggers names {package}, which is not installed: pip install {package}")
