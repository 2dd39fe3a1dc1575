"""What ``metrics.jsonl`` says, quantity by quantity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from chatbridge.common.documents import json_object
from chatbridge.report.follow import Follower, number, step_of
from chatbridge.report.series import Series


def _series() -> Any:
    return field(default_factory=Series)


@dataclass
class TrainSeries:
    """One series per key of a training row; those that a run does not log stay empty.

    Units: tokens are supervised ones; tflops are 10^12 operations per second and device; peak_share and data_share
    are parts of one; memory_gb is in 10^9 bytes; replaced and skipped count from the run's beginning;
    loss_scale is the fp16 scaler's.
    """

    loss: Series = _series()
    lr: Series = _series()
    grad_norm: Series = _series()
    tokens: Series = _series()
    samples: Series = _series()
    tokens_per_second: Series = _series()
    samples_per_second: Series = _series()
    tflops: Series = _series()
    peak_share: Series = _series()
    step_seconds: Series = _series()
    data_seconds: Series = _series()
    data_share: Series = _series()
    memory_gb: Series = _series()
    replaced: Series = _series()
    skipped: Series = _series()
    loss_scale: Series = _series()


class Metrics:
    """The rows of a ``metrics.jsonl``, read as far as it is written.

    Attributes:
        train: what is logged once a step.
        losses: dataset -> mean loss per token at the steps that read it.
        norms: component -> norm of its gradient.
        validation: validation set -> loss.
        unreadable: whole lines that are no row.
        went_back: steps at which the log was taken up again before its end.
    """

    def __init__(self, file: Path):
        self.file = file
        self._follower = Follower(file)
        self._clear()

    def _clear(self) -> None:
        self.train = TrainSeries()
        self._by_name = [(f.name, getattr(self.train, f.name)) for f in fields(TrainSeries)]
        self.losses: dict[str, Series] = {}
        self.norms: dict[str, Series] = {}
        self.validation: dict[str, Series] = {}
        self._drawn: dict[str, Any] | None = None
        self.unreadable = 0
        self.went_back: list[int] = []
        self.last_step = 0
        self.rows = 0

    def refresh(self) -> None:
        """Read what was added."""
        for line in self._follower.lines(self._clear):
            row = json_object(line)
            step = None if row is None else step_of(row)
            if row is None or step is None:
                self.unreadable += bool(line.strip())
            elif row.get("split", "train") == "train":
                self._train(step, row)
            else:
                self._validation(step, row)

    def _train(self, step: int, row: dict[str, Any]) -> None:
        if self.rows and step <= self.last_step:
            self._go_back(step)
        self.rows += 1
        self.last_step = step
        for name, series in self._by_name:
            value = number(row.get(name))
            if value is not None:
                series.add(step, value)
        _add_each(self.losses, step, _losses(row))
        _add_each(self.norms, step, row.get("grad_norms"))
        self._derive(step, row)
        drawn = row.get("drawn")
        if isinstance(drawn, dict):
            self._drawn = drawn

    def _derive(self, step: int, row: dict[str, Any]) -> None:
        """What follows from other keys, where a run did not log it itself."""
        seconds = number(row.get("step_seconds"))
        if not seconds:
            return
        train = self.train
        pairs = (
            (train.tokens_per_second, "tokens_per_second", "tokens"),
            (train.samples_per_second, "samples_per_second", "samples"),
            (train.data_share, "data_share", "data_seconds"),
        )
        for series, name, source in pairs:
            value = number(row.get(source))
            if name not in row and value is not None:
                series.add(step, value / seconds)

    def _validation(self, step: int, row: dict[str, Any]) -> None:
        _add_each(self.validation, step, {str(row.get("dataset") or row.get("split")): row.get("loss")})

    def _go_back(self, step: int) -> None:
        self.went_back.append(step)
        for series in self.all_series():
            series.cut(step)

    def all_series(self) -> Iterator[Series]:
        for _, series in self._by_name:
            yield series
        for group in (self.losses, self.norms, self.validation):
            yield from group.values()

    @property
    def drawn(self) -> dict[str, float] | None:
        """dataset -> samples drawn so far, or None where the run does not log it."""
        if self._drawn is None:
            return None
        counts = {name: number(value) for name, value in self._drawn.items()}
        return {name: value for name, value in counts.items() if value is not None}

    @property
    def last_logged(self) -> int:
        """The newest step of any row, 0 before the first."""
        return max([self.last_step, *(int(s.steps[-1]) for s in self.validation.values() if len(s))])

    def not_finite(self) -> list[int]:
        """Logged steps at which a training loss or gradient norm was NaN or infinite."""
        found: set[int] = set()
        for series in (self.train.loss, self.train.grad_norm, *self.losses.values(), *self.norms.values()):
            found.update(series.summary().broken)
        return sorted(found)


def _losses(row: dict[str, Any]) -> dict[str, Any]:
    """Loss by dataset; a row of an older run has the loss of the one dataset that it read."""
    losses = row.get("losses")
    if isinstance(losses, dict):
        return losses
    return {str(row["dataset"]): row.get("loss")} if "dataset" in row else {}


def _add_each(group: dict[str, Series], step: int, values: Any) -> None:
    if not isinstance(values, dict):
        return
    for name, raw in values.items():
        value = number(raw)
        if value is not None:
            series = group.get(name)
            if series is None:
                series = group[name] = Series()
            series.add(step, value)
