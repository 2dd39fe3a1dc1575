"""Learning rates per iteration, against the original's schedulers."""

from __future__ import annotations

import pytest

from chatbridge.common.registry import SCHEDULES
from chatbridge.common.schedules import ScheduleSpan


def span_of(config: dict, decay_rate: float = 1.0) -> ScheduleSpan:
    return ScheduleSpan(
        init_lr=config["init_lr"],
        min_lr=config["min_lr"],
        warmup_lr=config["warmup_start_lr"],
        warmup_steps=config["warmup_steps"],
        steps_per_epoch=config["iters_per_epoch"],
        total_steps=config["max_epoch"] * config["iters_per_epoch"],
        decay_rate=decay_rate,
        compat="original",
    )


@pytest.mark.parametrize("name", ["linear_warmup_cosine_lr", "linear_warmup_step_lr"])
def test_every_iteration(golden_json, name):
    import chatbridge.common.schedules  # noqa: F401  (registers)

    for case in golden_json("lr_schedule")["results"]:
        column = "cosine_lr" if "cosine" in name else next(k for k in case if k.startswith("step_lr_decay_"))
        decay = 1.0 if "cosine" in name else float(column.removeprefix("step_lr_decay_").replace("_", "."))
        schedule = SCHEDULES.get(name).target
        span = span_of(case["config"], decay)
        got = [schedule(span, step) for step in range(len(case[column]))]
        assert got == pytest.approx(case[column], rel=1e-12)
