"""The one training loop, for every stage: CPU, one GPU or many nodes, and back again after any interruption."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from chatbridge.common.batch import MultimodalBatch
from chatbridge.common.checkpoint import Retention, remove_partial
from chatbridge.common.documents import write_whole
from chatbridge.common.ledger import Ledger
from chatbridge.common.loggers import MetricsLog
from chatbridge.common.logging import EventLog
from chatbridge.common.optim import build_optimizers
from chatbridge.common.registry import RUNNERS
from chatbridge.common.run_folder import RunLock
from chatbridge.datasets.reading import workers_explained
from chatbridge.report import RunReport
from chatbridge.runners.assembly import Assembly
from chatbridge.runners.checkpoint_writer import CheckpointWriter, Snapshot
from chatbridge.runners.config import TrainingConfig
from chatbridge.runners.interruption import StopSignal
from chatbridge.runners.nonfinite import NonFiniteGuard
from chatbridge.runners.randomness import make_deterministic, seed_step
from chatbridge.runners.resume import Resumed, find_resumable
from chatbridge.runners.run_metadata import file_hashes, write_run_json
from chatbridge.runners.step import OptimizerStep, StepResult
from chatbridge.runners.strategy import Strategy, join_restarted
from chatbridge.runners.throughput import ThroughputMeter
from chatbridge.runners.validation import Validator
from chatbridge.runners.watchdog import COMPUTING, READING, SAVING, VALIDATING, Watchdog

logger = logging.getLogger("chatbridge")


@RUNNERS.register("training", config=TrainingConfig)
class TrainingRunner:
    """Trains what an assembly holds, as its run configuration says.

    Args:
        config: the ``run:`` section.
        assembly: builds model, data and task, by name, from the whole configuration.

    Attributes:
        step: steps taken so far. drawn: samples read so far, by dataset. best: the lowest validation loss and its step.
    """

    def __init__(self, config: TrainingConfig, assembly: Assembly):
        self.config = config
        self.assembly = assembly
        if config.threads:
            torch.set_num_threads(config.threads)
        if config.deterministic:
            make_deterministic()
        # The watchdog speaks first; a collective must not give up before it.
        patience, cpu = timedelta(seconds=2 * config.hang_seconds or 7 * 86400), config.device == "cpu"
        join_restarted(patience, cpu)
        self.accelerator = Accelerator(
            mixed_precision=config.precision(), cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=patience)]
        )
        self.output = Path(config.output_dir)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.schedule = config.schedule()
        self.step = 0
        self.best: tuple[float, int] | None = None
        self.drawn: Counter[str] = Counter()
        self.last_step = min(config.total_steps, config.stop_at or config.total_steps)
        # Every rank accounts for what it read itself.
        name = "ledger.jsonl" if self.rank == 0 else f"ledger_rank{self.rank}.jsonl"
        self.ledger = Ledger(self.output / name, config.max_bad_share, strict=config.strict)
        self.guard = NonFiniteGuard(self.output, self.rank, config.max_skipped)

    def run(self) -> None:
        """Build, resume where asked, train to the last step or until asked to stop, and leave a checkpoint."""
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(RunLock(self.output, self.main, gather_object))
            self.signal = stack.enter_context(StopSignal(self.config.grace_seconds))
            self._build()
            # Not before: a configuration that cannot run leaves no folder.
            lock.acquire()
            self.watchdog = stack.enter_context(Watchdog(self.output, self.rank, self.world, self.config.hang_seconds))
            self._open_run_folder(stack, self._resume())
            try:
                with workers_explained():
                    self._loop()
            except Exception as error:
                if not self.main:  # train.py speaks for the first rank, and this may have happened here alone
                    logger.error("rank %d, step %d: %s: %s", self.rank, self.step, type(error).__name__, error)
                behind = self.watchdog.ranks_behind() if isinstance(error, RuntimeError) else None
                if behind:  # a broken collective names addresses, and a rank that hangs logs nothing
                    logger.error("rank %d gave up at step %d; furthest behind: %s", self.rank, self.step + 1, behind)
                self.events.write(self.step, "failed", f"{type(error).__name__}: {error}")
                self._write_report()
                raise

    def _build(self) -> None:
        config = self.config
        strategy = Strategy(
            config, self.accelerator.device, self.rank, self.world, self.accelerator.local_process_index,
            int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        )  # fmt: skip
        self.model = strategy.build(self.assembly.model)
        torch.manual_seed(config.seed)
        optimizers = build_optimizers(self.model.named_parameters(), config)
        self.wrapped = strategy.wrap(self.model)
        self.optimizers = [self.accelerator.prepare(optimizer) for optimizer in optimizers]
        names = list(self.assembly.datasets)
        self.optimizer_step = OptimizerStep(
            self.model, self.wrapped, self.optimizers, self.accelerator, names, config.max_grad_norm
        )
        self.mixture = self.assembly.mixture(config.total_steps * config.accum_grad_iters, config.seed)
        self.batches = self.assembly.batches(
            self.mixture, self.rank, self.world, config.num_workers, pin=self.accelerator.device.type == "cuda"
        )
        self.sizes = {name: dataset.length for name, dataset in self.assembly.datasets.items()}
        self.ledger.sizes = {name: size // self.world for name, size in self.sizes.items() if size is not None}
        self.hashes = file_hashes(self.assembly.datasets)
        self.validator = Validator(self.assembly, self.model, self.accelerator, config.validate_batches)
        if config.validate_every:
            _ = self.validator.sets  # what is wrong with them is an error now, not hours later
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        logger.info(
            "training %s parameters on %s (%d processes, %s)", f"{trainable:,}", self.accelerator.device, self.world,
            strategy.name,
        )  # fmt: skip

    def _resume(self) -> Resumed | None:
        """Take over the state of the checkpoint that ``run.resume`` means, if there is one."""
        resumed = find_resumable(self.assembly.config, self.hashes, self.world)
        found = gather_object(["none" if resumed is None else resumed.folder.name])
        if len(set(found)) > 1:
            names = ", ".join(f"rank {rank}: {name}" for rank, name in enumerate(found))
            raise ValueError(f"{self.output}: processes find different checkpoints ({names}); all nodes must share it")
        if resumed is None:
            self.ledger.load_state_dict({"bytes": 0})  # of an attempt that ended before its first checkpoint
            return None
        self.model.load_trainable(resumed.weights, f"checkpoint '{resumed.folder}'")
        with resumed.taking_over():
            resumed.load_optimizers(self.optimizers, self.model, self.config)
            if self.accelerator.scaler is not None and resumed.trainer["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(resumed.trainer["scaler"])
            self.batches.load_state_dict(
                [state["batches"] for state in resumed.reading], accept_new_workers=resumed.accepts_new_workers
            )
            self.ledger.load_state_dict(resumed.ledger_of(self.rank, self.world))
            self.guard.load_state_dict(resumed.trainer.get("guard") or {})
            best = resumed.trainer.get("best")
            self.best = (best[0], best[1]) if best else None
            self.drawn.update(resumed.trainer.get("drawn") or {})
        self.step = resumed.trainer["step"]
        return resumed

    def _open_run_folder(self, stack: contextlib.ExitStack, resumed: Resumed | None) -> None:
        """The run folder's files."""
        config, text = self.config, self.assembly.loaded.to_yaml()
        if self.main:
            self.output.mkdir(parents=True, exist_ok=True)
            write_whole(self.output / "config.yaml", text)
            device = str(self.accelerator.device)
            write_run_json(
                self.output / "run.json", text, self.hashes, self.sizes, self.world, device, config.total_steps
            )
        metrics = MetricsLog(config.loggers if self.main else [], self.output, self.step, yaml.safe_load(text))
        self.log = stack.enter_context(contextlib.closing(metrics))
        self.events = stack.enter_context(contextlib.closing(EventLog(self.output if self.main else None)))
        self.report = RunReport(self.output) if self.main else None
        self.meter = ThroughputMeter(self.accelerator.device, config.precision() != "no", self.world)
        retention = Retention(config.keep_checkpoints, config.keep_every)
        self.writer = CheckpointWriter(self.output, retention, config.async_checkpoints, self.events.write)
        stack.callback(self.writer.join)
        if self.main:
            for name in remove_partial(self.output):
                self.events.write(self.step, "removed", f"{name}, which an interruption left half written")
        if resumed is None:
            self.events.write(self.step, "start", f"{self.world} processes")
            return
        logger.info("resumed at step %d of %d", self.step, config.total_steps)
        self.events.write(self.step, "resumed", f"from {resumed.folder.name} with {self.world} processes")
        for line in resumed.accepted:
            logger.warning("changed since %s was written, as run.accept_changes allows: %s", resumed.folder.name, line)
            self.events.write(self.step, "changed", line)

    def _loop(self) -> None:
        bar = tqdm(
            total=self.config.total_steps, initial=self.step, desc=self.output.name, unit="step", mininterval=1.0,
            disable=not self.accelerator.is_local_main_process,
        )  # fmt: skip
        self.wrapped.train()
        stopped = False
        with bar:
            while self.step < self.last_step and not stopped:
                result = self._one_step(bar)
                stopped = result.stop
                improved = self._validate() if self._due(self.config.validate_every) else False
                at_end = stopped or self.step == self.last_step
                if at_end or improved or self._due(self.config.checkpoint_every):
                    self._checkpoint(improved)
                if self._due(self.config.report_every):
                    self._write_report()
        if stopped:
            # Any rank may have got the signal; all of them stop, at the same step.
            text = f"{self.signal.received or 'a signal to another rank'}: stopped at step {self.step}"
            logger.info("%s of %d, with a checkpoint; start again to go on", text, self.config.total_steps)
            self.events.write(self.step, "signal", text)
        self.writer.finish()
        self.events.write(self.step, "end", "finished" if self.step == self.config.total_steps else "stopped")
        self._write_report()

    def _write_report(self) -> None:
        if self.report is not None:
            try:
                self.report.write()
            except Exception as error:  # a page is not worth a run
                logger.warning("report.html could not be written: %s: %s", type(error).__name__, error)

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _one_step(self, bar: tqdm) -> StepResult:
        config = self.config
        logged = (self.step + 1) % config.log_every == 0 or self.step + 1 == self.last_step
        started = time.perf_counter()
        self.watchdog.report_progress(self.step + 1, READING)
        micro = [next(self.batches) for _ in range(config.accum_grad_iters)]
        waited = time.perf_counter() - started
        self.watchdog.report_progress(self.step + 1, COMPUTING)
        for batch in micro:
            self.ledger.add(batch.sources, batch.ledger)
        rate = self.schedule(self.step)
        label = "+".join(dict.fromkeys(b.dataset for b in micro))  # equal on all ranks, as `_count_flops` needs
        if self.meter.needs_count(label):
            self._count_flops(label, micro[0])
        seed_step(config.seed, self.step, self.rank)
        result = self.optimizer_step(micro, rate, stop=bool(self.signal.received), detail=logged)
        self.step += 1
        self.drawn.update(result.drawn)
        self.meter.add(label, result.tokens, result.samples, waited)
        bar.update()
        if result.problem:
            self.guard.note(self.step, result, self.events)
        else:
            self.guard.passed()
        if logged:
            self._write_metrics(result, rate, label)
            bar.set_postfix(loss=f"{result.loss:.3f}", dataset=label, refresh=False)
        return result

    def _count_flops(self, label: str, batch: MultimodalBatch) -> None:
        """Learn what a batch of this dataset costs. (Under the counter dropout draws other numbers than without it,
        so that it may not watch a step that counts; compiled layers run as they were written, meanwhile.)"""
        compiled = self.config.compile is not None
        counter = FlopCounterMode(display=False)
        with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext(), counter:
            self.optimizer_step.dry_run(batch)
        self.meter.set_count(label, counter, len(batch.ids))

    def _write_metrics(self, result: StepResult, rate: float, label: str) -> None:
        values: dict[str, Any] = {
            "loss": result.loss,
            "dataset": label,
            "losses": result.losses,
            "lr": rate,
            "grad_norm": result.grad_norm,
            "grad_norms": result.grad_norms,
            "tokens": result.tokens,
            "samples": result.samples,
            "ids": result.checksum,
            "replaced": self.ledger.replaced.total() + self.ledger.lost.total(),
            "skipped": self.guard.skipped,
            "drawn": dict(self.drawn),
        }
        if self.accelerator.scaler is not None:
            values["loss_scale"] = self.accelerator.scaler.get_scale()
        self.log.write(self.step, values | self.meter.values())
        self.meter.restart()

    def _validate(self) -> bool:
        """Log the losses on held-out data; whether their mean is the lowest so far."""
        losses = self.validator.losses(lambda: self.watchdog.report_progress(self.step, VALIDATING))
        for name, values in losses.items():
            self.log.write(self.step, {**values, "dataset": name}, split="validation")
        self.wrapped.train()
        self.meter.restart()
        if not losses:
            return False
        mean = sum(values["loss"] for values in losses.values()) / len(losses)
        if self.best is not None and not mean < self.best[0]:
            return False
        self.best = (mean, self.step)
        return True

    def _checkpoint(self, improved: bool) -> None:
        self.watchdog.report_progress(self.step, SAVING)
        reading = gather_object([{"batches": self.batches.state_dict(), "ledger": self.ledger.state_dict()}])

        def snapshot(copy: Callable[[Any], Any]) -> Snapshot:
            scaler = self.accelerator.scaler
            trainer = {
                "step": self.step,
                "world": self.world,
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "scaler": None if scaler is None else scaler.state_dict(),
                "reading": reading,
                "guard": self.guard.state_dict(),
                "best": self.best,
                "drawn": dict(self.drawn),
                "annotations": self.hashes,
            }
            weights = self.model.trainable_state()
            return Snapshot(self.step, copy(weights), copy(trainer), self.assembly.loaded.to_yaml(), improved)

        if self.main:
            self.writer.save(snapshot)
        self.accelerator.wait_for_everyone()
        self.meter.restart()
