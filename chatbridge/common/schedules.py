"""Learning-rate schedules by name (``run.lr_sched``): pure functions of the step, so that a resumed run needs no state.

Source: the schedules of the original run files (linear warm-up into a cosine or into steps, per epoch).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from chatbridge.common.registry import SCHEDULES
from chatbridge.common.schema import inherited, key
from chatbridge.contracts import Schedule


@dataclass(kw_only=True)
class WarmupConfig:
    """Linear warm-up. What is null here is as the run says."""

    warmup_lr: float | None = key(
        None, low=-1.0, high=1e3, help="learning rate at the start; -1: init_lr; null: run.warmup_lr"
    )
    warmup_steps: int | None = key(None, low=0, unit="steps", help="length of the warm-up; null: run.warmup_steps")


@dataclass(kw_only=True)
class CosineConfig(WarmupConfig):
    min_lr: float | None = key(None, low=0.0, high=1e3, help="learning rate at the end; null: run.min_lr")


@dataclass(kw_only=True)
class StepConfig(CosineConfig):
    lr_decay_rate: float | None = key(None, low=0.0, high=1.0, help="factor per epoch; null: run.lr_decay_rate")


@SCHEDULES.register("linear_warmup_cosine_lr", config=CosineConfig)
def linear_warmup_cosine(config: CosineConfig, run: Any) -> Schedule:
    """Linear warm-up, then half a cosine over all steps, counted from step 0 and not from the warm-up's end."""
    config = inherited(config, run)

    def cosine(step: int) -> float:
        phase = math.pi * step / run.total_steps
        return (run.init_lr - config.min_lr) * 0.5 * (1.0 + math.cos(phase)) + config.min_lr

    return _warmed_up(config, run, cosine)


@SCHEDULES.register("linear_warmup_step_lr", config=StepConfig)
def linear_warmup_step(config: StepConfig, run: Any) -> Schedule:
    """Linear warm-up, then `init_lr` times `lr_decay_rate` to the power of the epoch, never below `min_lr`."""
    config = inherited(config, run)

    def by_epoch(step: int) -> float:
        return max(config.min_lr, run.init_lr * config.lr_decay_rate ** (step // run.iters_per_epoch))

    return _warmed_up(config, run, by_epoch)


@SCHEDULES.register("linear_warmup_constant_lr", config=WarmupConfig)
def linear_warmup_constant(config: WarmupConfig, run: Any) -> Schedule:
    """Linear warm-up, then `init_lr`."""
    return _warmed_up(inherited(config, run), run, lambda step: run.init_lr)


def _warmed_up(config: WarmupConfig, run: Any, after: Schedule) -> Schedule:
    """`after`, behind a ramp from `warmup_lr` to `init_lr`.

    Raises:
        ValueError: a negative rate, a warm-up longer than the run.
    """
    if -1 < config.warmup_lr < 0:
        raise ValueError(f"warmup_lr: {config.warmup_lr} is negative; -1 starts at init_lr")
    if config.warmup_steps > run.total_steps:
        raise ValueError(f"warmup_steps ({config.warmup_steps}) is more than the whole run ({run.total_steps})")
    start = config.warmup_lr if config.warmup_lr >= 0 else run.init_lr

    def rate(step: int) -> float:
        if step >= config.warmup_steps:
            return after(step)
        return min(run.init_lr, start + (run.init_lr - start) * step / config.warmup_steps)

    return rate
