"""The keys of the ``run:`` section. Names follow the original run files where they had one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from chatbridge.common import loggers, schedules  # noqa: F401  (they register what `run:` names)
from chatbridge.common.optim import DECAY_RULES, check_betas
from chatbridge.common.registry import LOGGERS, OPTIMIZERS, SCHEDULES
from chatbridge.common.schema import key
from chatbridge.contracts import Schedule

WEEK = 7 * 86400.0

MAX_BATCHES = 20_000_000
"""Of a run. Which dataset each is from is drawn beforehand: 32 bytes a batch."""


@dataclass(kw_only=True)
class DeviceConfig:
    """Where and in what precision a run computes."""

    output_dir: str = key(path="output", resume="free", help="the run folder")
    seed: int = key(42, help="of data order, dropout and initialisation", low=0, high=2**31 - 1)
    device: str = key("auto", resume="free", choices=("auto", "cpu"), help="auto takes the GPUs there are")
    amp: bool | str = key(
        "no", choices=("no", "bf16", "fp16", True, False), help="mixed precision; true takes bf16 where the GPU has it"
    )
    threads: int | None = key(
        None, resume="free", help="intra-op threads per process; null leaves PyTorch's choice", low=1, high=1024
    )
    num_workers: int = key(0, resume="free", help="data-loader workers per process", low=0, high=256)

    def precision(self) -> str:
        """The name accelerate knows: "no", "bf16" or "fp16"."""
        if self.amp is True:
            cuda = self.device != "cpu" and torch.cuda.is_available()
            return "no" if not cuda else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        return "no" if self.amp is False else self.amp


@dataclass(kw_only=True)
class TrainingConfig(DeviceConfig):
    """Hyper-parameters of a training run."""

    MOVED: ClassVar[dict[str, str]] = {"mixture": "mixture.mode, a section of its own"}

    lr_sched: Any = key("linear_warmup_cosine_lr", registry=SCHEDULES, help="learning-rate schedule")
    init_lr: float = key(1e-4, low=0.0, high=1e3, help="peak learning rate")
    min_lr: float = key(1e-5, low=0.0, high=1e3, help="learning rate at the end")
    warmup_lr: float = key(1e-6, low=-1.0, high=1e3, help="learning rate at the start; -1, LAVIS's default: init_lr")
    warmup_steps: int = key(0, low=0, unit="steps", help="length of the warm-up")
    lr_decay_rate: float = key(0.9, low=0.0, high=1.0, help="factor per epoch of linear_warmup_step_lr")
    optimizer: Any = key(
        "adamw", registry=OPTIMIZERS, help="what moves the weights; muon: Muon on matrices, AdamW on the rest"
    )
    muon_lr: float = key(
        0.01, low=0.0, high=1e3, help="Muon's peak learning rate; follows the same schedule as init_lr"
    )
    weight_decay: float = key(0.05, low=0.0, high=1e3, help="decoupled weight decay")
    decay: str = key("all", choices=DECAY_RULES, help="what decays: all (as published), or weight matrices only")
    betas: list[float] = key([0.9, 0.999], low=0.0, help="AdamW's moments, below 1")
    max_grad_norm: float | None = key(None, low=0.0, help="clip the gradient's norm; null does not clip")
    max_epoch: int = key(1, low=1, unit="epochs", help="an epoch is iters_per_epoch steps, whatever the data's size")
    iters_per_epoch: int = key(1000, low=1, unit="steps", help="optimizer steps per epoch")
    max_steps: int | None = key(None, low=1, unit="steps", help="total; null is max_epoch x iters_per_epoch")
    accum_grad_iters: int = key(1, low=1, unit="batches", help="batches per optimizer step")
    strategy: str = key(
        "ddp",
        resume="free",
        choices=("ddp", "fsdp"),
        help="fsdp: the language model's layers are spread over the processes",
    )
    offload_frozen: bool = key(
        False, resume="free", help="keep the language model in host memory, one layer on the GPU (needs fsdp)"
    )
    compile: str | None = key(
        None, resume="free", help="torch.compile of encoder and language-model layers by this backend (inductor)"
    )
    deterministic: bool = key(False, resume="free", help="deterministic kernels only; slower on GPUs (docs/running.md)")
    log_every: int = key(10, resume="free", low=1, unit="steps", help="a line of metrics.jsonl every so often")
    report_every: int = key(
        200, resume="free", low=0, unit="steps", help="report.html is written anew every so often; 0: at the end"
    )
    checkpoint_every: int = key(
        1000, resume="free", low=1, unit="steps", help="a checkpoint every so often, and at the end"
    )
    keep_checkpoints: int = key(2, resume="free", low=1, unit="checkpoints", help="older ones are removed")
    keep_every: int = key(
        0, resume="free", low=0, unit="steps", help="checkpoints of multiples of this are never removed; 0: none"
    )
    async_checkpoints: bool = key(True, resume="free", help="write files in the background while training goes on")
    grace_seconds: float = key(
        90.0, resume="free", low=0.0, high=WEEK, unit="s", help="after SIGTERM or SIGUSR1, for a checkpoint and exit 0"
    )
    hang_seconds: float = key(
        1800.0, resume="free", low=0.0, high=WEEK, unit="s", help="name a rank that stands still this long; 0: never"
    )
    max_skipped: int = key(
        10, resume="free", low=1, unit="steps", help="stop after so many steps in a row with NaN or infinity"
    )
    stop_at: int | None = key(
        None, resume="free", low=1, unit="steps", help="end here with a checkpoint, schedules as if not"
    )
    validate_every: int = key(0, resume="free", low=0, unit="steps", help="0 does not validate during training")
    validate_batches: int | None = key(
        None, resume="free", low=1, unit="batches", help="of each validation set; null takes all"
    )
    resume: str | None = key(
        "auto", resume="free", help="auto: the latest checkpoint of output_dir if there is one; a path; null"
    )
    accept_changes: list[str] = key(
        [],
        resume="free",
        help="keys that may differ from the resumed run's, e.g. run.init_lr; checkpoint: skip damaged ones",
    )
    loggers: list[Any] = key(
        ["jsonl", "tensorboard"], resume="free", registry=LOGGERS, help="where the run's numbers go"
    )
    strict: bool = key(False, resume="free", help="stop at the first sample that cannot be read (train.py --strict)")
    max_bad_share: float = key(
        0.05, resume="free", low=0.0, high=1.0, help="stop when more of a dataset's samples are unreadable"
    )

    def __post_init__(self) -> None:
        check_betas(self.betas)
        if self.offload_frozen and self.strategy != "fsdp":
            raise ValueError("offload_frozen: layers come to the GPU one by one under strategy: fsdp only")
        if 0 < self.hang_seconds < 1:
            raise ValueError(f"hang_seconds: {self.hang_seconds:g} s is less than a step takes; 0 never gives up")
        self.schedule()  # checks its keys
        if self.total_steps * self.accum_grad_iters > MAX_BATCHES:
            raise ValueError(
                f"max_steps, or max_epoch x iters_per_epoch: {self.total_steps:,} steps of {self.accum_grad_iters:,} "
                f"batches (accum_grad_iters) are more than the {MAX_BATCHES:,} batches of which the order is drawn"
            )

    def schedule(self) -> Schedule:
        """The learning rate by step. Raises ValueError for keys that do not go together."""
        return SCHEDULES.build(self.lr_sched, self)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.max_steps or self.max_epoch * self.iters_per_epoch
