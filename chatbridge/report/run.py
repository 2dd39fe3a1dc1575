"""A run folder as the report sees it: its files followed, its state judged, its figures counted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from chatbridge.report.follow import number
from chatbridge.report.formatting import duration
from chatbridge.report.metrics import Metrics
from chatbridge.report.run_files import Event, Events, LedgerFiles, RunInfo, read_run_info

RUNNING, FINISHED, STOPPED = "running", "finished", "stopped"

FINAL_EVENTS = ("hang", "signal", "failed", "error")
"""Events after which a run does not go on, unless it is started again."""

FINAL_EVENT_SECONDS = 60.0
"""Without a line after such an event, the run counts as stopped."""

SILENCE_SECONDS = 900.0
"""Seconds without a line after which any run counts as stopped, if its steps are not longer."""


@dataclass(frozen=True)
class State:
    """Whether the run goes on: `kind` is RUNNING, FINISHED or STOPPED, and `why` says more."""

    kind: str
    why: str = ""


@dataclass(frozen=True)
class Share:
    """A dataset's part in what was drawn. `share` and `expected` are parts of one, `expected` None if unknown."""

    dataset: str
    drawn: float
    share: float
    expected: float | None


class Run:
    """One run folder. `refresh` reads what was added to its files since the last time.

    Args:
        folder: the run's output folder (``run.output_dir``).
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.metrics = Metrics(folder / "metrics.jsonl")
        self.events = Events(folder / "events.jsonl")
        self.ledger = LedgerFiles(folder)
        self.info = RunInfo()

    @property
    def name(self) -> str:
        return self.folder.resolve().name or str(self.folder)

    def refresh(self) -> None:
        self.metrics.refresh()
        self.events.refresh()
        self.ledger.refresh()
        self.info = read_run_info(self.folder)

    @classmethod
    def read(cls, folder: Path) -> Run:
        """The run in a folder. Raises ValueError where there is none, or none that has logged a step."""
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; name the run folder (run.output_dir) of a training run")
        run = cls(folder)
        if not run.metrics.file.is_file():
            raise ValueError(
                f"{folder}: no training run, metrics.jsonl is missing; name the folder that run.output_dir gave, "
                "and keep jsonl in run.loggers"
            )
        run.refresh()
        if not run.metrics.rows and not run.metrics.validation:
            raise ValueError(
                f"{run.metrics.file}: holds no logged step yet; a line is written every run.log_every steps"
            )
        return run

    @property
    def datasets(self) -> list[str]:
        """Training and validation sets in the configuration's order, then as they appeared: colours follow it."""
        validation = self.info.config.get("validation")
        named = [*self.info.datasets, *(validation if isinstance(validation, Mapping) else ())]
        seen = [*self.metrics.losses, *(self.metrics.drawn or ()), *self.metrics.validation]
        shown = set(seen)
        return list(dict.fromkeys([name for name in map(str, named) if name in shown] + seen))

    def last_written(self) -> datetime | None:
        """When anything was last written by the run."""
        names = ("metrics.jsonl", "events.jsonl", "ledger.jsonl", "run.json")
        times = [p.stat().st_mtime for p in (self.folder / n for n in names) if p.is_file()]
        return datetime.fromtimestamp(max(times), timezone.utc) if times else None

    def state(self, now: datetime) -> State:
        """Running, finished or stopped, by the events, the number of steps, and how long the files have been still."""
        total, step, after = self.info.total_steps, self.metrics.last_logged, self._since_start()
        end = next((e for e in reversed(after) if e.kind == "end"), None)
        if total is not None and max(step, (end and end.step) or 0) >= total:
            return State(FINISHED)
        reason = next((f"{e.kind}: {e.text}" for e in reversed(after) if e.kind in FINAL_EVENTS), "")
        if end is not None:
            return State(STOPPED, reason or f"asked to end before its last step: {end.text or 'no reason given'}")
        last_written = self.last_written()
        still = (now - last_written).total_seconds() if last_written else 0.0
        if still > FINAL_EVENT_SECONDS:
            stacks = [p.name for p in sorted(self.folder.glob("hang_rank*.txt")) if p.stat().st_size]
            reason = reason or (f"a process stood still; where, is in {', '.join(stacks)}" if stacks else "")
            if reason:
                return State(STOPPED, reason)
        if still > max(SILENCE_SECONDS, 20 * self._seconds_between_lines()):
            return State(STOPPED, f"nothing was written for {duration(still)}: killed, or hanging")
        return State(RUNNING, reason)

    def _since_start(self) -> list[Event]:
        """Events since the run was last started or resumed."""
        events = self.events.all
        begun = [i for i, event in enumerate(events) if event.kind in ("start", "resumed")]
        return events[begun[-1] + 1 :] if begun else events

    def _seconds_between_lines(self) -> float:
        steps = self.metrics.train.loss.steps[-20:]
        gap = (steps[-1] - steps[0]) / (len(steps) - 1) if len(steps) > 1 else 1
        return float(gap) * (self.metrics.train.step_seconds.recent() or 0.0)

    def seconds_left(self) -> float | None:
        """Of training proper, at the speed of the last logged steps."""
        total, seconds = self.info.total_steps, self.metrics.train.step_seconds.recent()
        if total is None or seconds is None:
            return None
        return max(0, total - self.metrics.last_step) * seconds

    def checkpoint(self) -> Event | None:
        """The last one that was written; from the folders where there are no events."""
        found = self.events.last("checkpoint")
        if found is None:
            steps = [re.fullmatch(r"step_(\d+)", p.name) for p in (self.folder / "checkpoints").glob("step_*")]
            best = max((int(m[1]) for m in steps if m), default=None)
            found = None if best is None else Event("checkpoint", best, None, "")
        return found

    def shares(self) -> list[Share]:
        """What was drawn of every dataset, beside what the configuration asks for."""
        drawn = self.metrics.drawn or {n: float(len(s)) for n, s in self.metrics.losses.items()}
        total = sum(drawn.values())
        expected = self._expected(samples=self.metrics.drawn is not None)
        names = [n for n in dict.fromkeys([*self.info.datasets, *self.datasets]) if n in drawn or n in expected]
        return [Share(n, drawn.get(n, 0), drawn.get(n, 0) / total if total else 0.0, expected.get(n)) for n in names]

    def _expected(self, samples: bool) -> dict[str, float]:
        """Shares by configuration: of samples, or of steps. Empty where they are not known."""
        mode, parts = self.info.mode, {}
        for name, config in self.info.datasets.items():
            batch, weight, size = (number(config.get("batch_size")), number(config.get("weight")),
                                   number(self.info.sizes.get(name)))  # fmt: skip
            if config.get("batch_tokens"):
                batch = None
            if mode == "round_robin":
                weight = 1.0
            elif weight is None and size is not None:
                # No weight means the dataset's size, which is a number of batches where a step reads one dataset.
                weight = size if mode == "mixed" else size / batch if batch else None
            part = weight if mode == "mixed" or not samples else weight and batch and weight * batch
            if part is None:
                return {}
            parts[name] = part
        total = sum(parts.values())
        return {name: part / total for name, part in parts.items()} if total > 0 else {}
