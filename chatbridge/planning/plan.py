"""A run, planned before it is paid for: what is wrong with it, what it takes, and how long it will last."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

from chatbridge.common.config import LoadedConfig, load_config
from chatbridge.common.devices import device
from chatbridge.common.registry import OPTIMIZERS
from chatbridge.common.schema import ConfigError
from chatbridge.models.chatbridge import ChatBridge
from chatbridge.planning import verdict
from chatbridge.planning.assets import weight_problems
from chatbridge.planning.batches import PlannedDataset, planned_dataset, sample_sizes, shares
from chatbridge.planning.costs import Situation, variants
from chatbridge.planning.geometry import Geometry
from chatbridge.planning.inventory import inventory, meta_model
from chatbridge.planning.links import links_of
from chatbridge.planning.memory import resident
from chatbridge.planning.mixed import Ingredient, planned_mixture
from chatbridge.planning.probe import first_samples, probe
from chatbridge.planning.result import Plan, PlanOptions
from chatbridge.planning.sharding import Sharding
from chatbridge.processors.base import build_processors
from chatbridge.runners.assembly import Assembly
from chatbridge.runners.check import Findings, examine
from chatbridge.runners.config import TrainingConfig
from chatbridge.runners.worker_memory import worker_notes

PROBE_SECONDS = 15.0
"""Opening media for the probe stops after this long, over all datasets."""

GPUS_ELSEWHERE = 8
"""Processes per node that are assumed where this machine has no GPU and none are named."""


def plan(config: str | Path | LoadedConfig, options: PlanOptions | None = None, overrides: Sequence[str] = ()) -> Plan:
    """Plan a run. No weight is read and no GPU used; the parts must be registered before (`register_all`).

    Args:
        config: a YAML's path, or one that was loaded.
        options: the device and the rest. overrides: "a.b=c", as ``--options``.

    Returns:
        The plan, however much is wrong: see `Plan.ok`, `Plan.problems`, `Plan.missing`.

    Raises:
        ValueError: for options that make no sense (a device that is not known, no GPU).
    """
    started = time.monotonic()
    options = options or PlanOptions()
    result = Plan(str(config), device(options.device, options.tflops, options.memory_gb, options.utilisation))
    if options.nodes < 1 or (options.gpus is not None and options.gpus < 1):
        raise ValueError("a run takes at least one GPU on at least one node")
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


def _fill(result: Plan, assembly: Assembly, options: PlanOptions) -> None:
    run = assembly.config.run
    trains = isinstance(run, TrainingConfig)
    result.nodes = options.nodes
    result.gpus = options.gpus or torch.cuda.device_count() or (1 if run.device == "cpu" else GPUS_ELSEWHERE)
    result.amp = planned_precision(run.amp)
    strategy = options.strategy or getattr(run, "strategy", None) or "ddp"
    offload = strategy == "fsdp" and getattr(run, "offload_frozen", False)
    result.sharding = Sharding(strategy, result.world, getattr(run, "accum_grad_iters", 1), options.nodes, offload)
    result.links = links_of(result.device, options.link_gbs, options.network_gbs, options.host_gbs)
    result.compiled = getattr(run, "compile", None)
    sources = []

    def build() -> nn.Module:
        model, source = meta_model(assembly.config.model, options.llm)
        sources.append(source)
        return model

    found = examine(assembly, result.world if trains else 1, build)
    result.missing, result.problems = found.awaited, found.problems
    _look(result, found, options)
    verdict.judge_data(result, assembly.config)
    if found.model is not None:
        _measure(result, assembly, found, found.model, *sources)
    verdict.judge_run(result, assembly.config)
    sections = {name.partition(".")[2]: seen for name, seen in result.probes.items() if name.startswith("datasets.")}
    notes = worker_notes(assembly.config, {n: seen.media_bytes for n, seen in sections.items()}, result.world)
    result.warnings += [note.removeprefix("warning: ") for note in notes if note.startswith("warning: ")]


def _measure(result: Plan, assembly: Assembly, found: Findings, model: nn.Module, source: str) -> None:
    """Everything that the model's sizes tell."""
    trains = isinstance(assembly.config.run, TrainingConfig)
    result.inventory = inventory(model, source)
    geometry = None
    if isinstance(model, ChatBridge):
        geometry = Geometry(model, result.amp, every_branch=trains and result.world > 1)
    optimiser = OPTIMIZERS.name_of(assembly.config.run.optimizer) if trains else None
    result.resident = resident(result.inventory, geometry, result.sharding, optimiser)
    if geometry is None:
        result.warnings.append("the model is not 'chatbridge': only its parameters are counted")
        return
    result.problems += weight_problems(assembly.config.model, model)
    verdict.judge_vocabulary(result, found.tokenizer, geometry.llm.vocabulary)
    if trains:
        _plan_steps(result, assembly, found, geometry)


def _look(result: Plan, found: Findings, options: PlanOptions) -> None:
    """Render and probe every dataset whose annotations are there."""
    deadline = time.monotonic() + PROBE_SECONDS
    for name, dataset in found.datasets.items():
        result.entries[name] = dataset.length
        result.samples[name] = first_samples(dataset, found.tokenizer, options.samples)
        if options.probe:
            result.probes[name] = probe(dataset, found.tokenizer, options.probe, deadline)


def _plan_steps(result: Plan, assembly: Assembly, found: Findings, geometry: Geometry) -> None:
    """The steps of every dataset, as far as the parts they need can be built, and other ways to take them."""
    config, run = assembly.config, assembly.config.run
    planned = _planner(result, assembly, found, geometry)
    if planned is None or not planned(1):
        return
    here = Situation(
        result.inventory,
        geometry,
        result.sharding,
        result.device,
        result.links,
        OPTIMIZERS.name_of(run.optimizer),
        run.total_steps,
        planned,
    )
    result.datasets = planned(1)
    costs = here.costs(result.datasets)
    result.work, result.memory, result.throughput = costs.work, costs.memory, costs.throughput
    if config.mixture.mode == "mixed":
        sizes = [config.mixture.batch_size]
    else:
        sizes = [d.batch_size for d in config.datasets.values() if d.batch_tokens is None]
    result.variants = variants(here, sizes)


def _planner(
    result: Plan, assembly: Assembly, found: Findings, geometry: Geometry
) -> Callable[[int], list[PlannedDataset]] | None:
    """How many parts every batch is cut into -> the batches of every dataset; None without task or processors."""
    config = assembly.config
    quiet = Findings()  # what is wrong with task and processors is known already
    task, processors = quiet.attempt(lambda: assembly.task), quiet.attempt(lambda: assembly.processors)
    if task is None or processors is None:
        return None
    bos = 0 if found.tokenizer is not None and found.tokenizer.bos_id is None else 1
    sizes = {name: result.entries.get(f"datasets.{name}") or 0 for name in config.datasets}
    mixed = config.mixture.mode == "mixed"

    def one(name: str, share: float, parts: int) -> PlannedDataset | Ingredient:
        settings = config.datasets[name]
        every = {**processors, **build_processors(settings.processors, f"dataset '{name}': processors")}
        seen = result.probes.get(f"datasets.{name}")
        if mixed:
            sizes = sample_sizes(settings, task, geometry, seen, bos)
            return Ingredient(settings.kind, share, sizes, every, seen is not None and bool(seen.lengths))
        tokens = settings.batch_tokens
        samples = max(1, settings.batch_size // parts)
        cut = replace(settings, batch_size=samples, batch_tokens=None if tokens is None else tokens // parts)
        return planned_dataset(name, cut, share, result.world, task, every, geometry, seen, bos)

    @cache
    def planned(parts: int) -> list[PlannedDataset]:
        told = found if parts == 1 else quiet
        datasets = [
            told.attempt(lambda n=name, s=share: one(n, s, parts))
            for name, share in shares(config.datasets, sizes, config.mixture.mode).items()
        ]
        if mixed:
            whole = bool(datasets) and all(datasets)
            size = config.mixture.batch_size // parts
            datasets = [told.attempt(lambda: planned_mixture(datasets, size, result.world, geometry))] if whole else []
        return [dataset for dataset in datasets if dataset is not None]

    return planned
