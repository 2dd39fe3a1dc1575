"""A schedule from outside the package: linear warm-up, then the inverse square root of the step (Vaswani 2017)."""

from __future__ import annotations

from dataclasses import dataclass

from chatbridge.common.registry import SCHEDULES
from chatbridge.common.schema import inherited, key


@dataclass(kw_only=True)
class InverseRootConfig:
    warmup_steps: int | None = key(None, low=0, unit="steps", help="length of the warm-up; null: run.warmup_steps")


@SCHEDULES.register("inverse_root", config=InverseRootConfig)
def inverse_root(config, run):
    warmup = max(inherited(config, run).warmup_steps, 1)
    return lambda step: run.init_lr * min((step + 1) / warmup, (warmup / (step + 1)) ** 0.5)
