"""A run, planned before it is paid for: what is wrong with it, what it takes, and how long it will last."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from chatbridge.common.config import Config, LoadedConfig, load_config
from chatbridge.common.devices import device
from chatbridge.common.schema import ConfigError
from chatbridge.common.shared_memory import worker_notes
from chatbridge.planning import verdict
from chatbridge.planning.batch_shapes import (
    PlannedDataset,
    SampleStatistics,
    planned_dataset,
    planned_mixture,
    shares,
)
from chatbridge.planning.costs import CostModel, Costs, Variant
from chatbridge.planning.dataset_probe import Probe, probe
from chatbridge.planning.fsdp import ShardGroups
from chatbridge.planning.memory import MARGIN, resident_memory
from chatbridge.planning.model import meta_model
from chatbridge.planning.parameters import ParameterCount, count_parameters
from chatbridge.planning.placement import NETWORK_GBS, NVLINK_GBS, PCIE_GBS, Placement
from chatbridge.runners.assembly import Assembly
from chatbridge.runners.check import Findings, examine
from chatbridge.runners.config import TrainingConfig

PROBE_SECONDS = 15.0
"""Opening media for the probe stops after this long, over all datasets."""

GPUS_ELSEWHERE = 8
"""Processes per node that are assumed where this machine has no GPU and none are named."""


@dataclass(frozen=True)
class PlanOptions:
    """Where a run is to take place, and how closely its data are looked at.

    Attributes:
        device: a name of `DEVICES`. tflops, memory_gb, utilisation: instead of the device's own numbers.
        gpus: per node; None takes this machine's, or 8 where it has none. nodes: how many.
        strategy: "ddp" or "fsdp"; None takes ``run.strategy`` where the run has one, else "ddp".
        link_gbs, network_gbs, host_gbs: GB/s, see `Placement`; instead of what is assumed.
        llm: name or config.json of the language model's architecture, for a folder that is not there.
        samples: rendered samples shown of each dataset. probe: items of each that are tried, those at least.
    """

    device: str = "a100-80gb"
    tflops: float | None = None
    memory_gb: float | None = None
    utilisation: float | None = None
    gpus: int | None = None
    nodes: int = 1
    strategy: str | None = None
    link_gbs: float | None = None
    network_gbs: float | None = None
    host_gbs: float | None = None
    llm: str | None = None
    samples: int = 1
    probe: int = 32

    def placement(self) -> Placement:
        """Where that is, as far as it is known without the run. Raises ValueError for options that make no sense."""
        gpu = device(self.device, self.tflops, self.memory_gb, self.utilisation)
        usual = {"link_gbs": NVLINK_GBS if gpu.nvlink else PCIE_GBS, "network_gbs": NETWORK_GBS, "host_gbs": PCIE_GBS}
        rates = {name: rate if getattr(self, name) is None else getattr(self, name) for name, rate in usual.items()}
        return Placement(gpu, 1 if self.gpus is None else self.gpus, self.nodes, **rates)


@dataclass
class RunPlan:
    """What `plan` found. `problems` and `missing` are what would make the run fail; empty lists mean that it can start.

    Attributes:
        source: the YAML. problems, missing, warnings: one line each; missing are files to fetch.
        placement, amp, compiled: where and how it computes.
        parameters, costs: the model's tensors; memory and time. None where that cannot be known.
        datasets: whose steps were simulated.
        probes: by "datasets.<name>" or "validation.<name>", of those whose files are there.
        variants: how else it could run, where memory is short.
    """

    source: str
    placement: Placement
    amp: str | None = None
    compiled: str | None = None
    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    parameters: ParameterCount | None = None
    costs: Costs | None = None
    datasets: list[PlannedDataset] = field(default_factory=list)
    probes: dict[str, Probe] = field(default_factory=dict)
    variants: list[Variant] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not (self.problems or self.missing)

    @property
    def room(self) -> float:
        """Bytes of a GPU."""
        return self.placement.device.memory_gb * 1e9


def plan(
    config: str | Path | LoadedConfig, options: PlanOptions | None = None, overrides: Sequence[str] = ()
) -> RunPlan:
    """Plan a run. No weight is read and no GPU used; the parts must be registered before (`register_all`).

    Args:
        config: a YAML's path, or one that was loaded.
        options: the device and the rest. overrides: "a.b=c", as ``--options``.

    Returns:
        The plan, however much is wrong: see `RunPlan.ok`, `RunPlan.problems`, `RunPlan.missing`.

    Raises:
        ValueError: for options that make no sense (a device that is not known, no GPU).
    """
    started = time.monotonic()
    options = options or PlanOptions()
    result = RunPlan(str(config), options.placement())
    try:
        loaded = config if isinstance(config, LoadedConfig) else load_config(config, overrides, defer_missing=True)
    except ConfigError as error:
        result.problems = list(error.problems)
        return result
    result.source = str(loaded.source)
    _fill(result, Assembly(loaded), options)
    result.seconds = time.monotonic() - started
    return result


def planned_precision(amp: bool | str) -> str | None:
    """``run.amp`` as it will be on the planned device, whatever this machine is: "bf16", "fp16", or None."""
    if amp is True:
        return "bf16"
    return None if amp in (False, "no") else str(amp)


def _fill(result: RunPlan, assembly: Assembly, options: PlanOptions) -> None:
    config, run = assembly.config, assembly.config.run
    _place(result, config, options)
    sources = []

    def build() -> nn.Module:
        model, source = meta_model(config.model, options.llm)
        sources.append(source)
        return model

    found = examine(assembly, result.placement.world if isinstance(run, TrainingConfig) else 1, build)
    result.missing, result.problems = found.awaited, found.problems
    deadline = time.monotonic() + PROBE_SECONDS
    for name, dataset in found.datasets.items():
        count = max(options.samples, options.probe)
        result.probes[name] = probe(dataset, found.tokenizer, count, options.samples, deadline)
    verdict.judge_data(result, config)
    if found.model is not None:
        result.parameters = count_parameters(found.model, *sources)
        verdict.judge_model(result, config, found)
        try:
            _simulate(result, config, found, options)
        except Exception as error:  # it may be the user's own code, which nothing here knows
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            result.warnings.append(f"no step can be simulated, only parameters are counted: {reason}")
    verdict.judge_run(result, config)
    sections = {name.partition(".")[2]: seen for name, seen in result.probes.items() if name.startswith("datasets.")}
    notes = worker_notes(config, {n: seen.media_bytes for n, seen in sections.items()}, result.placement.world)
    result.warnings += [note.removeprefix("warning: ") for note in notes if note.startswith("warning: ")]


def _place(result: RunPlan, config: Config, options: PlanOptions) -> None:
    run = config.run
    strategy = options.strategy or getattr(run, "strategy", None) or "ddp"
    result.placement = replace(
        result.placement,
        gpus=options.gpus or torch.cuda.device_count() or (1 if run.device == "cpu" else GPUS_ELSEWHERE),
        strategy=strategy,
        offload=strategy == "fsdp" and getattr(run, "offload_frozen", False),
        accumulate=getattr(run, "accum_grad_iters", 1),
        checkpointing=bool(getattr(getattr(config.model, "llm", None), "gradient_checkpointing", False)),
    )
    result.amp, result.compiled = planned_precision(run.amp), getattr(run, "compile", None)


def _simulate(result: RunPlan, config: Config, found: Findings, options: PlanOptions) -> None:
    """The steps of every dataset, as far as its parts can be built, and how else they fit where memory is short."""
    run, where, llm = config.run, result.placement, getattr(config.model, "llm", None)
    if not isinstance(run, TrainingConfig):
        groups = ShardGroups(getattr(found.model, "llm", None))
        result.costs = Costs(resident_memory(result.parameters, groups, where, None))
        return

    def rebuild(checkpointing: bool) -> nn.Module:
        changed = replace(config.model, llm=replace(llm, gradient_checkpointing=checkpointing))
        return meta_model(changed, options.llm)[0]

    batches = _batches(result, config, found)
    model = CostModel(
        found.model, rebuild, found.optimizers, result.parameters, batches, where, result.amp, run.total_steps
    )
    result.costs = Costs(model.resident(where))
    if not batches(1):
        return
    result.costs = model.costs(where)  # fails where a step cannot be simulated: no dataset is planned then
    result.datasets = batches(1)
    if result.costs.peak > (1 - MARGIN) * result.room:
        sizes = [config.mixture.batch_size]
        if config.mixture.mode != "mixed":
            sizes = [d.batch_size for d in config.datasets.values() if d.batch_tokens is None]
        result.variants = model.variants(sizes, hasattr(llm, "gradient_checkpointing"))


def _batches(result: RunPlan, config: Config, found: Findings) -> Callable[[int], list[PlannedDataset]]:
    """How many parts every batch is cut into -> the batches of every dataset; none where they cannot be known."""
    bos = 0 if found.tokenizer is not None and found.tokenizer.bos_id is None else 1
    entries = {name: getattr(result.probes.get(f"datasets.{name}"), "entries", None) or 0 for name in config.datasets}
    known = {
        name: SampleStatistics(found.outlines[key], share, result.probes.get(key), bos)
        for name, share in shares(config.datasets, entries, config.mixture.mode).items()
        if (key := f"datasets.{name}") in found.outlines
    }
    world = result.placement.world

    def batches(parts: int) -> list[PlannedDataset]:
        if config.mixture.mode != "mixed":
            return [planned_dataset(name, one, world, parts) for name, one in known.items()]
        if not known or len(known) < len(config.datasets):
            return []
        return [planned_mixture(list(known.values()), config.mixture.batch_size, world, parts)]

    return batches
