"""Predicted against measured: memory and time of training steps with random weights and blank batches.

    python benchmarks/calibrate_plan.py --cfg-path train_configs/chatbridge_pretrain.yaml --out calibration.json
    python benchmarks/calibrate_plan.py --cfg-path CFG --simulate    # the real size without a GPU: memory alone

Every different batch of the configuration is run as one of `--gpus` processes would have it, on one GPU, without the
others: memory and time are those of a single process without communication. Memory is PyTorch's own account (without
the driver's context); on the CPU, where there is none, the bytes of all tensors alive. The share of the peak that the
steps reach is printed: give it to ``train.py --plan --utilisation``. Needs neither weights nor data.

`--simulate` runs no step: it compares a simulation of few layers with one of all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from chatbridge import register_all
from chatbridge.common.batch import MultimodalBatch
from chatbridge.common.config import load_config
from chatbridge.common.devices import DEVICES, Device, device, device_of
from chatbridge.common.optim import build_optimizers
from chatbridge.models import ChatBridge
from chatbridge.planning import PlanOptions, plan
from chatbridge.planning.batch_shapes import BatchShape
from chatbridge.planning.model import meta_model
from chatbridge.planning.parameters import count_parameters
from chatbridge.planning.recorder import Recorder
from chatbridge.planning.report import table
from chatbridge.planning.run_plan import planned_precision
from chatbridge.planning.simulator import AMP_DTYPES, Simulator, blank_batch, rows_of
from chatbridge.planning.throughput import seconds
from chatbridge.runners import TrainingConfig

MEMORY_WITHIN, TIME_WITHIN = 0.15, 0.25

RUN = TrainingConfig(output_dir="", init_lr=1e-5)
"""The optimizer's settings."""


@dataclass
class Row:
    """One batch's result; bytes and seconds."""

    name: str
    samples: float
    length: float
    predicted_bytes: float
    measured_bytes: float
    flops: float
    predicted_seconds: float
    measured_seconds: float
    utilisation: float


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg-path", required=True, help="the YAML of a training run")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of the YAML")
    parser.add_argument("--llm", help="architecture of a language model whose folder is not there")
    parser.add_argument("--gpus", type=int, default=8, help="processes that share a batch (default: %(default)s)")
    parser.add_argument("--only", nargs="+", help="names of datasets; default: one of every different batch")
    parser.add_argument("--device", choices=list(DEVICES), help="default: by the name of the GPU")
    parser.add_argument("--tflops", type=float, help="half-precision dense peak, instead of the device's")
    parser.add_argument("--utilisation", type=float, help="assumed for the prediction, instead of the device's")
    parser.add_argument(
        "--steps", type=int, default=8, help="timed steps, after two that are not (default: %(default)s)"
    )
    parser.add_argument("--simulate", action="store_true", help="compare with a simulation of all layers instead")
    parser.add_argument("--out", type=Path, help="write the results there, too, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """0 when every prediction holds (on a GPU; elsewhere times mean little and are not judged), else 1."""
    args = parse_args(argv)
    register_all()
    where = "meta" if args.simulate else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        build, amp, shapes = _from_config(args)
        planned = Device("no device", 0.0, 0.0, 0.0, 0.0) if args.simulate else _device(args, where)
        empty = build("meta")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    count = count_parameters(empty)
    always = float(count.parameter_bytes + count.buffer_bytes)
    optimizers = build_optimizers(empty.named_parameters(), RUN)
    few = Simulator(empty, amp=amp)
    update = few.update(optimizers)
    always += update.state
    if args.simulate:
        model = Simulator(build("meta"), amp=amp, short=False)
    else:
        model = build(where)
    rows = []
    for name, shape in shapes.items():
        step, work = few.step(shape), few.work(shape)
        peak = always + max(*step.peaks.values(), step.left + update.temporary)
        flops, full = sum(w.total for w in work.values()), 0.0
        if args.simulate:
            whole = model.step(shape)
            measured, taken = always + max(*whole.peaks.values(), whole.left + update.temporary), 0.0
        else:
            measured, taken = run(model, shape, amp, args.steps)
            full = seconds(work.values(), replace(planned, utilisation=1.0))
        guess = full / planned.utilisation if full else 0.0
        share = full / taken if taken else 0.0
        rows.append(Row(name, shape.samples, shape.length, peak, measured, flops, guess, taken, share))
    print(_report(rows, planned, where))
    if args.out:
        result = {"device": asdict(planned), "torch": torch.__version__, "rows": [asdict(row) for row in rows]}
        args.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0 if all(_holds(row, where) for row in rows) else 1


def run(model: ChatBridge, shape: BatchShape, amp: str | None, steps: int) -> tuple[int, float]:
    """Train a few steps on one batch: (bytes at the worst moment, median seconds of a step)."""
    where = model.device
    optimizers = build_optimizers(model.named_parameters(), RUN)
    _make_states(model, optimizers)
    batch = blank_batch(shape, rows_of(model, shape)).to(where)
    scaler = torch.amp.GradScaler(where.type, enabled=amp == "fp16" and where.type == "cuda")
    kind = AMP_DTYPES.get(amp)
    context = torch.autocast(where.type, kind) if kind else contextlib.nullcontext()

    def step() -> None:
        with context:
            loss = model(batch).loss_sum
        scaler.scale(loss).backward()
        del loss
        for optimizer in optimizers:
            scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        scaler.update()

    measured, times = _watch(step, model, optimizers, batch, steps)
    return measured, statistics.median(times)


def _watch(
    step: Callable[[], None], model: nn.Module, optimizers: list, batch: MultimodalBatch, steps: int
) -> tuple[int, list[float]]:
    """(bytes at the worst moment, seconds of each step)."""
    cuda = model.device.type == "cuda"
    times = []
    for index in range(steps + 2):
        if cuda:
            torch.cuda.synchronize()
            if index == 2:
                torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        if index >= 2:
            times.append(time.perf_counter() - started)
    if cuda:
        return torch.cuda.max_memory_allocated(), times
    states = [t for o in optimizers for s in o.state.values() for t in s.values()]
    there = [*model.parameters(), *model.buffers(), *states, *batch.media.values()]
    with Recorder(model, known=there) as live:
        step()
    return live.peak + sum(tensor.nbytes for tensor in there), times


def _make_states(model: nn.Module, optimizers: list) -> None:
    """Let the optimizers have their state for every parameter, those that this batch does not reach included."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


Build = Callable[[str], ChatBridge]
"""Device -> the model there, in training."""


def _from_config(args: argparse.Namespace) -> tuple[Build, str | None, dict[str, BatchShape]]:
    options = PlanOptions(gpus=args.gpus, llm=args.llm, probe=0, samples=0)
    found = plan(args.cfg_path, options, args.options)
    if not found.datasets:
        raise ValueError("\n".join(found.problems) or f"{args.cfg_path} describes no training run")
    shapes: dict[str, BatchShape] = {}
    for dataset in found.datasets:
        if args.only and dataset.name not in args.only:
            continue
        if args.only or dataset.expected not in shapes.values():
            shapes[dataset.name] = dataset.expected
    if not shapes:
        raise ValueError(f"--only {' '.join(args.only)}: the run has {', '.join(d.name for d in found.datasets)}")
    config = load_config(args.cfg_path, args.options, defer_missing=True).config
    config.model.weights = []
    for bridge in config.model.bridges.values():
        bridge.encoder = replace(bridge.encoder, weights=None)
    return lambda where: meta_model(config.model, args.llm, where)[0].train(), planned_precision(config.run.amp), shapes


def _device(args: argparse.Namespace, where: str) -> Device:
    if where == "cpu":
        peak = args.tflops or _cpu_tflops()
        return Device("cpu", peak, peak, 0.0, args.utilisation or 0.5)
    name = torch.cuda.get_device_name()
    known = device_of(name)
    if args.device is None and known is None:
        raise ValueError(f"'{name}' is in no table: name its nearest with --device, and its peak with --tflops")
    return device(args.device or known.name, args.tflops, utilisation=args.utilisation)


def _cpu_tflops() -> float:
    """What a large bf16 product reaches here."""
    a = torch.randn(1024, 1024, dtype=torch.bfloat16)
    a @ a
    started = time.perf_counter()
    for _ in range(3):
        a @ a
    return 3 * 2 * 1024**3 / (time.perf_counter() - started) / 1e12


def _holds(row: Row, where: str) -> bool:
    memory = abs(row.predicted_bytes / row.measured_bytes - 1) <= MEMORY_WITHIN
    if where != "cuda":
        return memory
    return memory and abs(row.predicted_seconds / row.measured_seconds - 1) <= TIME_WITHIN


def _report(rows: list[Row], planned: Device, where: str) -> str:
    cells = [["batch", "samples", "positions", "GB planned", "measured", "", "s planned", "measured", "", "of peak"]]
    for r in rows:
        cells.append([
            r.name, f"{r.samples:g}", f"{r.length:g}",
            f"{r.predicted_bytes / 1e9:.3f}", f"{r.measured_bytes / 1e9:.3f}",
            f"{r.predicted_bytes / r.measured_bytes - 1:+.1%}",
        ])  # fmt: skip
        if where == "meta":
            continue
        cells[-1] += [f"{r.predicted_seconds:.4f}", f"{r.measured_seconds:.4f}"]
        cells[-1] += [f"{r.predicted_seconds / r.measured_seconds - 1:+.1%}", f"{r.utilisation:.1%}"]
    if where == "meta":
        return f"Simulated, PyTorch {torch.__version__}\n" + table([row[:6] for row in cells], "lrrrrr")
    name = torch.cuda.get_device_name() if where == "cuda" else "CPU"
    head = f"{name}: planned as {planned.name}, {planned.half_tflops:.3g} TFLOP/s at {planned.utilisation:.0%}"
    return f"{head}, PyTorch {torch.__version__}\n" + table(cells, "lrrrrrrrrr")


if __name__ == "__main__":
    sys.exit(main())
