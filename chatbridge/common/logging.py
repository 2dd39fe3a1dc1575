"""Where a run's numbers go: JSON lines always, TensorBoard and Weights & Biases by configuration."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tqdm import tqdm


def setup_logging(main_process: bool) -> logging.Logger:
    """The package's logger: one line per message on stderr, warnings only on the other ranks."""
    forgiving_streams()
    logger = logging.getLogger("chatbridge")
    logger.setLevel(logging.INFO if main_process else logging.WARNING)
    if not logger.handlers:
        handler = _BesideProgressBars()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
    return logger


def forgiving_streams() -> None:
    """Let no character end a program: what a terminal's encoding lacks is written as an escape, and bytes that are no
    text in it are read as surrogates (see `documents.repaired`), as Python reads the names of files."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # replaced by something that is no such stream, or closed
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "backslashreplace")


class _BesideProgressBars(logging.Handler):
    """Writes a line to whatever stderr is at that moment, without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def check_sinks(sinks: Sequence[str]) -> None:
    """Raise ValueError where a run is to be logged to what is not installed."""
    for sink in ("tensorboard", "wandb"):
        if sink in sinks and sink not in sys.modules and importlib.util.find_spec(sink) is None:
            raise ValueError(f"run.loggers names {sink}, which is not installed: pip install {sink}")


class MetricsLog:
    """Writes one object per logged step.

    Args:
        folder: the run folder; ``metrics.jsonl`` and TensorBoard's files go there.
        sinks: any of "jsonl", "tensorboard", "wandb".
        resumed_at: the step a resumed run starts from; lines of later steps, which the killed run had written
            after its last checkpoint, are dropped so that every step stands once.
        config: recorded with W&B.
    """

    def __init__(self, folder: Path, sinks: list[str], resumed_at: int = 0, config: dict | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self._jsonl = self._tensorboard = self._wandb = None
        if "jsonl" in sinks:
            file = folder / "metrics.jsonl"
            kept = _lines_before(file, resumed_at) if resumed_at else []
            file.write_text("".join(kept), encoding="utf-8")
            self._jsonl = file.open("a", encoding="utf-8", buffering=1)
        if "tensorboard" in sinks:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at or None)
        if "wandb" in sinks:
            check_sinks(sinks)
            import wandb

            # One run there for one folder here, however often it was interrupted. The key comes from the environment.
            name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
            self._wandb = wandb.init(dir=str(folder), config=config, id=name, name=folder.name, resume="allow")

    def write(self, step: int, values: dict[str, Any], prefix: str = "train") -> None:
        """Log numbers and names of one step; scalars go to every sink, names to JSON only."""
        if self._jsonl is not None:
            self._jsonl.write(json.dumps({"step": step, "split": prefix, **values}) + "\n")
        scalars = _scalars(values)
        if self._tensorboard is not None:
            group = f"{prefix}/{values['dataset']}" if "dataset" in values else prefix
            for name, value in scalars.items():
                self._tensorboard.add_scalar(f"{group}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{prefix}/{k}": v for k, v in scalars.items()}, step=step)

    def close(self) -> None:
        for sink in (self._jsonl, self._tensorboard):
            if sink is not None:
                sink.close()
        if self._wandb is not None:
            self._wandb.finish()


def _scalars(values: dict[str, Any]) -> dict[str, float]:
    """The numbers among the values, those of a mapping as "losses/images"."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= {f"{name}/{inner}": number for inner, number in _scalars(value).items()}
        elif isinstance(value, (int, float)):
            found[name] = value
    return found


class EventLog:
    """``events.jsonl``: what happened to a run besides its steps, kept over restarts. Written from any thread.

    Args:
        folder: the run folder; None writes nothing (ranks other than the first).
    """

    def __init__(self, folder: Path | None):
        self._lock = threading.Lock()
        self._out = None
        if folder is not None:  # a file that an error names need not have a name that is text
            file = folder / "events.jsonl"
            self._out = file.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)

    def write(self, step: int, event: str, text: str) -> None:
        row = {"step": step, "time": datetime.now(timezone.utc).isoformat(timespec="seconds"), "event": event}
        with self._lock:
            if self._out is not None and not self._out.closed:
                self._out.write(json.dumps(row | {"text": text}, ensure_ascii=False) + "\n")

    def close(self) -> None:
        if self._out is not None:
            self._out.close()


def _lines_before(file: Path, step: int) -> list[str]:
    """The log's whole lines up to and including `step`; a line cut by a kill is dropped, and rubbish."""
    kept = []
    if file.is_file():
        for line in file.read_bytes().splitlines(keepends=True):
            with suppress(ValueError, RecursionError, KeyError, TypeError):  # KeyError, TypeError: JSON, but no row
                if json.loads(line)["step"] <= step:
                    kept.append(line.decode())
    return kept
