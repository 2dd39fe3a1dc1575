"""Learning rates per iteration, against the original's schedulers."""

from __future__ import annotations

import pytest

from chatbridge.common.registry import RUNNERS, SCHEDULES
from tests.variants import configured

KEYS = ("init_lr", "min_lr", "warmup_steps", "iters_per_epoch", "max_epoch")


@pytest.mark.parametrize("name", ["linear_warmup_cosine_lr", "linear_warmup_step_lr"])
def test_every_iteration(golden_json, name):
    for case in golden_json("lr_schedule")["results"]:
        column = "cosine_lr" if "cosine" in name else next(k for k in case if k.startswith("step_lr_decay_"))
        decay = 1.0 if "cosine" in name else float(column.removeprefix("step_lr_decay_").replace("_", "."))
        schedule = configured(
            RUNNERS,
            "training",
            "original",
            output_dir="",
            lr_sched=SCHEDULES.configured(name),
            lr_decay_rate=decay,
            warmup_lr=case["config"]["warmup_start_lr"],
            **{key: case["config"][key] for key in KEYS},
        ).schedule()
        got = [schedule(step) for step in range(len(case[column]))]
        assert got == pytest.approx(case[column], rel=1e-12)
