"""Learning rates at a run's beginning (all of a run's against the original's: `tests/parity/test_schedules.py`)."""

from __future__ import annotations

import pytest

import train
from chatbridge import register_all
from chatbridge.common.registry import SCHEDULES
from chatbridge.common.schedules import ScheduleSpan
from chatbridge.runners.config import TrainingConfig
from tests import tiny


@pytest.mark.parametrize("name", ["linear_warmup_cosine_lr", "linear_warmup_step_lr", "linear_warmup_constant_lr"])
@pytest.mark.parametrize("compat", ["default", "original"])
def test_a_warm_up_from_minus_one_starts_at_the_peak(name, compat):
    register_all()
    schedule = SCHEDULES.get(name).target
    settings = {"init_lr": 3e-4, "min_lr": 1e-5, "warmup_steps": 6, "steps_per_epoch": 10, "total_steps": 20}
    span = ScheduleSpan(**settings, warmup_lr=-1, compat=compat)
    assert [schedule(span, step) for step in range(6)] == [3e-4] * 6
    assert all(1e-5 <= schedule(span, step) <= 3e-4 for step in range(20))


def test_other_negative_rates_are_refused(tmp_path, capsys):
    TrainingConfig(output_dir="", warmup_lr=-1)
    yaml = str(tiny.write_yaml(tmp_path, tiny.make_config(tmp_path)))
    for value in ("-0.5", "-1e-6", "-2"):
        assert train.main(["--cfg-path", yaml, "--check", "--options", f"run.warmup_lr={value}"]) == 1
        assert "run.warmup_lr" in capsys.readouterr().err.replace("run: ", "run.")
