"""The original's warm-up, which looks at the step of the epoch where it should look at the step of the run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from chatbridge.common.registry import RUNNERS, SCHEDULES
from chatbridge.common.schedules import StepConfig, WarmupConfig
from chatbridge.common.schema import inherited
from chatbridge.contracts import Schedule
from chatbridge.runners.config import TrainingConfig
from chatbridge.runners.training import TrainingRunner


@dataclass(kw_only=True)
class OriginalTrainingConfig(TrainingConfig):
    """The keys of a training run."""

    def schedule(self) -> Schedule:
        """A warm-up longer than an epoch begins anew in every epoch, or (in steps by epoch) ends with the first."""
        config, rate, epoch = self.lr_sched, super().schedule(), self.iters_per_epoch
        if isinstance(config, StepConfig):
            decayed = SCHEDULES.build(replace(config, warmup_steps=0), self)
            return lambda step: rate(step) if step < epoch else decayed(step)
        if isinstance(config, WarmupConfig):
            warmup = inherited(config, self).warmup_steps
            return lambda step: rate(step % epoch if step < warmup else step)
        return rate


RUNNERS.variant("training", "original", config=OriginalTrainingConfig, help="warm-up restarts at every epoch")(
    TrainingRunner
)
