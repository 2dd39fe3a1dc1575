"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no schedule state.

Source: the schedules of the original run files (linear warm-up into a cosine or into steps, per epoch).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from chatbridge.common.registry import SCHEDULES


@dataclass(frozen=True)
class ScheduleSpan:
    """What a schedule needs to know of a run.

    Attributes:
        init_lr: peak learning rate; min_lr: its floor; warmup_lr: where the warm-up starts, negative for `init_lr`.
        warmup_steps: optimiser steps from `warmup_lr` to `init_lr`.
        steps_per_epoch, total_steps: optimiser steps.
        decay_rate: factor per epoch of the step schedule.
        compat: "original" treats a warm-up longer than an epoch as the original code did: the cosine restarts its
            ramp at every epoch, the step schedule drops the ramp after the first.
    """

    init_lr: float
    min_lr: float
    warmup_lr: float
    warmup_steps: int
    steps_per_epoch: int
    total_steps: int
    decay_rate: float = 0.9
    compat: str = "default"


def _warmup(span: ScheduleSpan, step: int) -> float | None:
    if step >= span.warmup_steps:
        return None
    ramp = step % span.steps_per_epoch if span.compat == "original" else step
    start = span.warmup_lr if span.warmup_lr >= 0 else span.init_lr
    rise = (span.init_lr - start) * ramp / max(span.warmup_steps, 1)
    return min(span.init_lr, start + rise)


@SCHEDULES.register("linear_warmup_cosine_lr")
def linear_warmup_cosine(span: ScheduleSpan, step: int) -> float:
    """Linear warm-up, then half a cosine over all steps, counted from step 0 and not from the warm-up's end."""
    warm = _warmup(span, step)
    if warm is not None:
        return warm
    phase = math.pi * step / span.total_steps
    return (span.init_lr - span.min_lr) * 0.5 * (1.0 + math.cos(phase)) + span.min_lr


@SCHEDULES.register("linear_warmup_step_lr")
def linear_warmup_step(span: ScheduleSpan, step: int) -> float:
    """Linear warm-up, then `init_lr` times `decay_rate` to the power of the epoch, never below `min_lr`."""
    past_first_epoch = step >= span.steps_per_epoch
    warm = None if past_first_epoch and span.compat == "original" else _warmup(span, step)
    if warm is not None:
        return warm
    return max(span.min_lr, span.init_lr * span.decay_rate ** (step // span.steps_per_epoch))


@SCHEDULES.register("linear_warmup_constant_lr")
def linear_warmup_constant(span: ScheduleSpan, step: int) -> float:
    """Linear warm-up, then `init_lr`."""
    warm = _warmup(span, step)
    return span.init_lr if warm is None else warm
