"""What a run came to, in a few figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from chatbridge.report.run import RUNNING, Run
from chatbridge.report.series import Series, mean


@dataclass(frozen=True)
class ValidationSummary:
    """Loss on a validation set: the last, and the lowest with its step."""

    last: float
    lowest: float | None
    at: int | None


@dataclass(frozen=True)
class Figures:
    """What a run came to; None for what it does not log.

    Attributes:
        loss: of the last logged step; recent_loss, losses: means of the last `RECENT` logged values.
        samples_per_second, tokens_per_second, tflops, peak_share, data_share: means over all logged steps.
        step_seconds: the median, so that a first step that compiles does not count; memory_gb: the highest.
    """

    run: str
    folder: str
    state: str
    why: str
    step: int
    total_steps: int | None
    seconds_left: float | None
    loss: float | None
    recent_loss: float | None
    losses: dict[str, float | None]
    validation: dict[str, ValidationSummary]
    grad_norm: float | None
    samples_per_second: float | None
    tokens_per_second: float | None
    tflops: float | None
    peak_share: float | None
    step_seconds: float | None
    data_share: float | None
    memory_gb: float | None
    replaced: int
    skipped: int
    not_finite: int
    checkpoint: int | None

    @classmethod
    def of(cls, run: Run, now: datetime) -> Figures:
        train, state, checkpoint = run.metrics.train, run.state(now), run.checkpoint()

        def average(series: Series) -> float | None:
            return mean(series.values)

        memory = train.memory_gb.summary().highest
        return cls(
            run=run.name, folder=str(run.folder), state=state.kind, why=state.why, step=run.metrics.last_logged,
            total_steps=run.info.total_steps,
            seconds_left=run.seconds_left() if state.kind == RUNNING else None,
            loss=train.loss.last, recent_loss=train.loss.recent(),
            losses={name: run.metrics.losses[name].recent() for name in run.datasets if name in run.metrics.losses},
            validation={name: _validation(run.metrics.validation[name])
                        for name in run.datasets if len(run.metrics.validation.get(name, ()))},
            grad_norm=train.grad_norm.recent(), samples_per_second=average(train.samples_per_second),
            tokens_per_second=average(train.tokens_per_second), tflops=average(train.tflops),
            peak_share=average(train.peak_share), step_seconds=train.step_seconds.summary().median,
            data_share=average(train.data_share), memory_gb=memory[1] if memory else None,
            replaced=_count(train.replaced), skipped=_count(train.skipped), not_finite=len(run.metrics.not_finite()),
            checkpoint=checkpoint.step if checkpoint else None,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Unrounded, for programs."""
        return asdict(self)


def _validation(series: Series) -> ValidationSummary:
    summary = series.summary()
    at, lowest = summary.lowest or (None, None)
    return ValidationSummary(summary.last, lowest, at)


def _count(series: Series) -> int:
    highest = series.summary().highest
    return int(highest[1]) if highest else 0
