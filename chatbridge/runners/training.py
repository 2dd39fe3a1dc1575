"""The one training loop, for every stage, on accelerate: CPU, one GPU or many."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from tqdm import tqdm

from chatbridge.common.batch import MultimodalBatch
from chatbridge.common.checkpoint import (
    find_latest,
    load_trainer,
    load_weights,
    resolve_checkpoint,
    save_checkpoint,
)
from chatbridge.common.ledger import Ledger, join_counts
from chatbridge.common.logging import MetricsLog
from chatbridge.common.optim import build_optimizers, set_learning_rate
from chatbridge.common.registry import RUNNERS, SCHEDULES
from chatbridge.common.schedules import ScheduleSpan
from chatbridge.runners.assembly import Assembly
from chatbridge.runners.config import TrainingConfig

logger = logging.getLogger("chatbridge")


@RUNNERS.register("training", config=TrainingConfig)
class TrainingRunner:
    """Trains what an assembly holds, as its run configuration says.

    Args:
        config: the ``run:`` section.
        assembly: builds model, data and task, by name, from the whole configuration.
    """

    def __init__(self, config: TrainingConfig, assembly: Assembly):
        self.config = config
        self.assembly = assembly
        if config.threads:
            torch.set_num_threads(config.threads)
        # A step reads one dataset, so the bridges of the other modalities have no gradient in it.
        ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.accelerator = Accelerator(
            mixed_precision=config.precision(), cpu=config.device == "cpu", kwargs_handlers=[ddp]
        )
        self.output = Path(config.output_dir)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.schedule = SCHEDULES.get(config.lr_sched).target
        self.span = ScheduleSpan(
            init_lr=config.init_lr,
            min_lr=config.min_lr,
            warmup_lr=config.warmup_lr,
            warmup_steps=config.warmup_steps,
            steps_per_epoch=config.iters_per_epoch,
            total_steps=config.total_steps,
            decay_rate=config.lr_decay_rate,
            compat=config.compat,
        )
        self.step = 0
        # Every rank accounts for what it read itself.
        name = "ledger.jsonl" if self.rank == 0 else f"ledger_rank{self.rank}.jsonl"
        self.ledger = Ledger(self.output / name, config.max_bad_share, strict=config.strict)

    def run(self) -> None:
        """Build, resume where asked, train to the last step, and leave a final checkpoint."""
        self._build()
        resumed = self._resume()
        if self.accelerator.is_main_process:
            self.output.mkdir(parents=True, exist_ok=True)
            (self.output / "config.yaml").write_text(self.assembly.loaded.to_yaml(), encoding="utf-8")
        self.log = self._open_log()
        if resumed:
            logger.info("resumed at step %d of %d", self.step, self.config.total_steps)
        try:
            self._loop()
        finally:
            self.log.close()

    def _build(self) -> None:
        self.model = self.assembly.model(self.accelerator.device)
        torch.manual_seed(self.config.seed)
        config = self.config
        optimizers = build_optimizers(
            self.model.named_parameters(), config.init_lr, config.weight_decay, tuple(config.betas), config.decay,
            config.muon_lr if config.optimizer == "muon" else None,
        )  # fmt: skip
        self.wrapped, *self.optimizers = self.accelerator.prepare(self.model, *optimizers)
        self.mixture = self.assembly.mixture(
            self.config.total_steps * self.config.accum_grad_iters, self.config.seed, self.config.mixture
        )
        self.batches = self.assembly.batches(
            self.mixture, self.rank, self.world, config.num_workers, pin=self.accelerator.device.type == "cuda"
        )
        sizes = {name: dataset.length for name, dataset in self.assembly.datasets.items()}
        self.ledger.sizes = {name: size // self.world for name, size in sizes.items() if size is not None}
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        logger.info("training %s parameters on %s", f"{trainable:,}", self.accelerator.device)

    def _open_log(self) -> MetricsLog:
        sinks = list(self.config.loggers) if self.accelerator.is_main_process else []
        return MetricsLog(self.output, sinks, resumed_at=self.step)

    def _resume(self) -> bool:
        """Load model, optimiser and counters from the checkpoint that ``run.resume`` means, if there is one."""
        wanted = self.config.resume
        if wanted is None:
            return False
        folder = find_latest(self.output) if wanted == "auto" else resolve_checkpoint(wanted)
        if folder is None:
            return False
        self.model.load_trainable(load_weights(folder))
        trainer = load_trainer(folder)
        for optimizer, state in zip(self.optimizers, trainer["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        if self.accelerator.scaler is not None and trainer["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(trainer["scaler"])
        reading = trainer["reading"]
        self.batches.load_state_dict([state["batches"] for state in reading])
        if len(reading) == self.world:
            self.ledger.load_state_dict(reading[self.rank]["ledger"])
        elif self.rank == 0:
            self.ledger.load_state_dict(join_counts(state["ledger"] for state in reading))
        self.step = trainer["step"]
        return True

    def _loop(self) -> None:
        config = self.config
        total = config.total_steps
        bar = tqdm(
            total=total, initial=self.step, desc=self.output.name, unit="step", mininterval=1.0,
            disable=not self.accelerator.is_local_main_process,
        )  # fmt: skip
        self.wrapped.train()
        with bar:
            while self.step < total:
                started = time.perf_counter()
                micro = [next(self.batches) for _ in range(config.accum_grad_iters)]
                waited = time.perf_counter() - started
                values = self._train_step(micro)
                self.step += 1
                bar.update()
                if self.step % config.log_every == 0 or self.step == total:
                    values |= {"data_seconds": waited, "step_seconds": time.perf_counter() - started}
                    self.log.write(self.step, values)
                    bar.set_postfix(loss=f"{values['loss']:.3f}", dataset=values["dataset"], refresh=False)
                if config.validate_every and self.step % config.validate_every == 0:
                    self._validate()
                if self.step % config.checkpoint_every == 0 or self.step == total:
                    self._checkpoint()

    def _train_step(self, micro: list[MultimodalBatch]) -> dict[str, Any]:
        """One optimiser step: every supervised token of every rank and micro-batch weighs the same."""
        self._seed_step()
        for batch in micro:
            self.ledger.add(batch.dataset, len(batch.ids), batch.ledger)
        rate = self.schedule(self.span, self.step)
        set_learning_rate(self.optimizers, rate)
        tokens = self._sum_over_ranks(sum(batch.supervised_tokens for batch in micro))
        loss_sum = 0.0
        for i, batch in enumerate(micro):
            last = i == len(micro) - 1
            no_sync = contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped)
            with no_sync:
                output = self.wrapped(batch.to(self.accelerator.device, non_blocking=True))
                # DDP averages gradients over ranks: multiply by their number to get the sum over all tokens.
                self.accelerator.backward(output.loss_sum * (self.world / max(tokens, 1)))
            loss_sum += float(output.loss_sum.detach())
        norm = None
        if self.config.max_grad_norm is not None:
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            norm = float(self.accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss = self._sum_over_ranks(loss_sum) / max(tokens, 1)
        values = {"loss": loss, "dataset": "+".join(dict.fromkeys(b.dataset for b in micro)), "lr": rate}
        if norm is not None:
            values["grad_norm"] = norm
        return values | {"tokens": int(tokens), "replaced": self.ledger.replaced.total() + self.ledger.lost.total()}

    def _seed_step(self) -> None:
        """Dropout is a function of (seed, step, rank): a resumed run draws what an uninterrupted one would."""
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 8191 + self.rank)

    def _sum_over_ranks(self, value: float) -> float:
        if self.world == 1:
            return value
        total = torch.tensor(float(value), dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.reduce(total, reduction="sum"))

    @torch.no_grad()
    def _validate(self) -> None:
        """Mean loss per supervised token of every validation set, read in order."""
        self.model.eval()
        for name, loader in self.assembly.validation_loaders(self.rank, self.world, self.config.validate_batches):
            loss_sum = tokens = 0.0
            for batch in loader:
                output = self.model(batch.to(self.accelerator.device))
                loss_sum += float(output.loss_sum)
                tokens += batch.supervised_tokens
            loss_sum, tokens = self._sum_over_ranks(loss_sum), self._sum_over_ranks(tokens)
            self.log.write(self.step, {"loss": loss_sum / max(tokens, 1), "dataset": name}, prefix="validation")
        self.model.train()

    def _checkpoint(self) -> None:
        reading = gather_object([{"batches": self.batches.state_dict(), "ledger": self.ledger.state_dict()}])
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            trainer = {
                "step": self.step,
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "scaler": None if scaler is None else scaler.state_dict(),
                "reading": reading,
            }
            text = self.assembly.loaded.to_yaml()
            weights = self.model.trainable_state()
            save_checkpoint(self.output, self.step, weights, trainer, text, keep=self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()
