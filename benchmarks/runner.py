"""What the training runner costs: ``python -m benchmarks.runner``.

step        a runner's step against the bare one (forward, backward, update) with the same model on the same batches,
            in turns: processor time of either, and the difference. --cfg-path takes any training YAML that runs here.
checkpoint  a checkpoint of --checkpoint-of's trainable parameters, with two AdamW moments each: for how long training
            stands still, the first time and later, and how long the writing takes (in --folder)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from chatbridge import register_all
from chatbridge.common.batch import MultimodalBatch
from chatbridge.common.checkpoint import Retention
from chatbridge.common.config import load_config
from chatbridge.planning.model import meta_model
from chatbridge.runners.assembly import Assembly
from chatbridge.runners.checkpoint_writer import CheckpointWriter, Snapshot
from chatbridge.runners.interruption import StopSignal
from chatbridge.runners.training import TrainingRunner
from chatbridge.runners.watchdog import Watchdog

ROOT = Path(__file__).parent.parent


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "checkpoint"))
    parser.add_argument("--cfg-path", default=str(ROOT / "train_configs" / "quickstart.yaml"))
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=60, help="of either kind")
    parser.add_argument("--checkpoint-of", default=str(ROOT / "train_configs" / "chatbridge_pretrain.yaml"))
    parser.add_argument("--folder", type=Path, help="where the checkpoints go; default: a temporary folder")
    args = parser.parse_args(argv)
    register_all()
    with tempfile.TemporaryDirectory() as folder:
        output = args.folder or Path(folder)
        found = step(args, output) if args.what == "step" else checkpoint(args.checkpoint_of, output)
    json.dump(found, sys.stdout, indent=1)
    print()
    return 0


def step(args: argparse.Namespace, output: Path) -> dict[str, Any]:
    """Seconds of processor time per step, medians over pairs of steps on one batch: the bare one, then the runner's."""
    options = [*args.options, f"run.output_dir={output}", "run.resume=null", "run.validate_every=0"]
    assembly = Assembly(load_config(args.cfg_path, options))
    runner = TrainingRunner(assembly.config.run, assembly)
    with (
        StopSignal(0) as runner.signal,
        Watchdog(output, 0, 1, runner.config.hang_seconds) as runner.watchdog,
        contextlib.ExitStack() as stack,
    ):
        runner._build()
        runner._open_run_folder(stack, None)
        batches = [next(runner.batches) for _ in range(2 * len(assembly.datasets))]
        bare, whole = _pairs(runner, batches, args.steps)
    extra = [b - a for a, b in zip(bare, whole, strict=True)]
    return {
        "steps": args.steps,
        "bare_seconds": statistics.median(bare),
        "runner_seconds": statistics.median(whole),
        "extra_seconds": statistics.median(extra),
        "overhead": statistics.median(extra) / statistics.median(bare),
    }


def _pairs(runner: TrainingRunner, batches: list[MultimodalBatch], steps: int) -> tuple[list[float], list[float]]:
    bare, whole = [], []
    runner.wrapped.train()
    with tqdm(total=2 * steps, disable=True) as bar:
        for number, batch in zip(range(-len(batches), steps), cycle(batches), strict=False):
            runner.batches = iter([batch])  # reading is measured by benchmarks/data_loading.py
            a = _seconds(lambda b=batch: _bare_step(runner, b))
            b = _seconds(lambda: runner._one_step(bar))
            if number >= 0:  # those before warm up, and count operations
                bare.append(a)
                whole.append(b)
    return bare, whole


def _bare_step(runner: TrainingRunner, batch: MultimodalBatch) -> None:
    output = runner.model(batch)
    output.loss.backward()
    for optimizer in runner.optimizers:
        optimizer.optimizer.step()
        optimizer.optimizer.zero_grad(set_to_none=True)


def _seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def checkpoint(cfg_path: str, output: Path) -> dict[str, Any]:
    """Wall seconds for a checkpoint of the real size, without and with writing in the background."""
    loaded = load_config(cfg_path, defer_missing=True)
    model, _ = meta_model(loaded.config.model)
    weights = {n: torch.randn(p.shape) for n, p in model.named_parameters() if p.requires_grad}
    moments = {n: {"exp_avg": torch.randn_like(w), "exp_avg_sq": torch.rand_like(w)} for n, w in weights.items()}
    found: dict[str, Any] = {"parameters": sum(w.numel() for w in weights.values())}
    for background in (False, True):
        writer = CheckpointWriter(output / str(background), Retention(1), background, lambda *_: None)
        blocked, written = [], []
        for number in range(4):
            writer.save(lambda copy, n=number: _snapshot(copy, n, weights, moments))
            blocked.append(writer.blocked_seconds)
            writer.finish()
            written.append(writer.write_seconds)
        found["background" if background else "foreground"] = {
            "blocked_seconds_first": blocked[0],
            "blocked_seconds": statistics.median(blocked[1:]),
            "write_seconds": statistics.median(written[1:]),
        }
    found["bytes"] = sum(file.stat().st_size for file in (output / "True").rglob("*") if file.is_file())
    return found


def _snapshot(copy: Callable[[Any], Any], step: int, weights: dict[str, Tensor], moments: dict[str, Any]) -> Snapshot:
    return Snapshot(step, copy(weights), copy({"optimizers": moments}), "run: {}\n")


if __name__ == "__main__":
    sys.exit(main())
