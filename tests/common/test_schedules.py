"""Learning rates at a run's beginning (all of a run's against the original's: `tests/parity/test_schedules.py`)."""

from __future__ import annotations

import pytest

import train
from chatbridge.common.registry import RUNNERS, SCHEDULES
from chatbridge.runners.config import TrainingConfig
from tests import tiny
from tests.variants import MODES, configured


@pytest.mark.parametrize("name", ["linear_warmup_cosine_lr", "linear_warmup_step_lr", "linear_warmup_constant_lr"])
@pytest.mark.parametrize("compat", MODES)
def test_a_warm_up_from_minus_one_starts_at_the_peak(name, compat):
    settings = {"init_lr": 3e-4, "min_lr": 1e-5, "warmup_steps": 6, "iters_per_epoch": 10, "max_epoch": 2}
    parts = {"output_dir": "", "lr_sched": SCHEDULES.configured(name), "warmup_lr": -1}
    schedule = configured(RUNNERS, "training", compat, **settings, **parts).schedule()
    assert [schedule(step) for step in range(6)] == [3e-4] * 6
    assert all(1e-5 <= schedule(step) <= 3e-4 for step in range(20))


def test_keys_of_its_own_stand_before_those_of_the_run():
    own = SCHEDULES.get("linear_warmup_step_lr").config(warmup_steps=2, warmup_lr=0.0, lr_decay_rate=0.5)
    run = {"init_lr": 8.0, "min_lr": 1.0, "warmup_steps": 7, "iters_per_epoch": 3, "max_epoch": 5}
    schedule = TrainingConfig(output_dir="", lr_sched=own, **run).schedule()
    assert [schedule(step) for step in range(15)] == [0.0, 4.0, 8.0, *[4.0] * 3, *[2.0] * 3, *[1.0] * 6]


def test_other_negative_rates_are_refused(tmp_path, capsys):
    yaml = str(tiny.write_yaml(tmp_path, tiny.make_config(tmp_path)))
    for value in ("-0.5", "-1e-6", "-2"):
        assert train.main(["--cfg-path", yaml, "--check", "--options", f"run.warmup_lr={value}"]) == 1
        assert "run.warmup_lr" in capsys.readouterr().err.replace("run: ", "run.")
    for options in ("{name: linear_warmup_cosine_lr, warmup_lr: -0.5}", "{name: linear_warmup_step_lr, warmup: 3}"):
        assert train.main(["--cfg-path", yaml, "--check", "--options", f"run.lr_sched={options}"]) == 1
        assert "warmup" in capsys.readouterr().err
