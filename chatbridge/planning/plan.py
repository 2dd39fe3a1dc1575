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
from chatbridge.common.schema import ConfigError
from chatbridge.common.shared_memory import worker_notes
from chatbridge.planning import verdict
from chatbridge.planning.batches import PlannedDataset, describe_samples, planned_dataset, planned_mixture, shares
from chatbridge.planning.costs import Situation, resident, variants
from chatbridge.planning.inventory import inventory, meta_model
from chatbridge.planning.probe import first_samples, probe
from chatbridge.planning.result import Plan, PlanOptions
from chatbridge.planning.sharding import Sharding, language_shards
from chatbridge.planning.steps import Simulator
from chatbridge.planning.throughput import links_of
from chatbridge.processors.base import build_processors
from chatbridge.runners.assembly import Assembly
from chatbridge.runners.check import Findings, examine
from chatbridge.runners.config import TrainingConfig

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
        result.inventory = inventory(found.model, *sources)
        verdict.judge_model(result, assembly.config, found)
        try:
            _plan_steps(result, assembly, found, options)
        except Exception as error:  # it may be the user's own code, which nothing here knows
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            result.warnings.append(f"no step can be simulated, only parameters are counted: {reason}")
    verdict.judge_run(result, assembly.config)
    sections = {name.partition(".")[2]: seen for name, seen in result.probes.items() if name.startswith("datasets.")}
    notes = worker_notes(assembly.config, {n: seen.media_bytes for n, seen in sections.items()}, result.world)
    result.warnings += [note.removeprefix("warning: ") for note in notes if note.startswith("warning: ")]


def _look(result: Plan, found: Findings, options: PlanOptions) -> None:
    """Render and probe every dataset whose annotations are there."""
    deadline = time.monotonic() + PROBE_SECONDS
    for name, dataset in found.datasets.items():
        result.entries[name] = dataset.length
        result.samples[name] = first_samples(dataset, found.tokenizer, options.samples)
        if options.probe:
            result.probes[name] = probe(dataset, found.tokenizer, options.probe, deadline)


def _plan_steps(result: Plan, assembly: Assembly, found: Findings, options: PlanOptions) -> None:
    """The steps of every dataset, as far as the parts they need can be built, and other ways to take them."""
    config, run = assembly.config, assembly.config.run
    shards = language_shards(found.model.llm) if hasattr(found.model, "llm") else None
    if not isinstance(run, TrainingConfig):
        result.resident = resident(result.inventory, shards, result.sharding, None)
        return
    checkpointing = getattr(getattr(config.model, "llm", None), "gradient_checkpointing", None)

    def rebuild(wanted: bool) -> nn.Module:
        llm = replace(config.model.llm, gradient_checkpointing=wanted)
        return meta_model(replace(config.model, llm=llm), options.llm)[0]

    simulator = Simulator(found.model, rebuild, bool(checkpointing), result.amp, result.world)
    update = simulator.update(found.optimizers)
    result.resident = resident(result.inventory, shards, result.sharding, update.state)
    planned = _planner(result, assembly, found)
    if planned is None or not planned(1):
        return
    here = Situation(
        result.inventory, simulator, update, shards, result.sharding, result.device, result.links, run.total_steps,
        planned, bool(checkpointing),
    )  # fmt: skip
    costs = here.costs(planned(1))  # fails where a step cannot be simulated: nothing is planned then
    result.datasets = planned(1)
    result.work, result.memory, result.throughput = costs.work, costs.memory, costs.throughput
    if config.mixture.mode == "mixed":
        sizes = [config.mixture.batch_size]
    else:
        sizes = [d.batch_size for d in config.datasets.values() if d.batch_tokens is None]
    result.variants = variants(here, sizes, checkpointing is not None)


def _planner(result: Plan, assembly: Assembly, found: Findings) -> Callable[[int], list[PlannedDataset]] | None:
    """How many parts every batch is cut into -> the batches of every dataset; None without task or processors."""
    config = assembly.config
    quiet = Findings()  # what is wrong with task, processors and their media is known already
    task, processors = quiet.attempt(lambda: assembly.task), quiet.attempt(lambda: assembly.processors)
    if task is None or processors is None:
        return None
    bos = 0 if found.tokenizer is not None and found.tokenizer.bos_id is None else 1
    entries = {name: result.entries.get(f"datasets.{name}") or 0 for name in config.datasets}
    samples = {}
    for name, share in shares(config.datasets, entries, config.mixture.mode).items():
        settings = config.datasets[name]
        own = quiet.attempt(lambda n=name, s=settings: build_processors(s.processors, f"dataset '{n}': processors"))
        if own is not None:
            samples[name] = quiet.attempt(
                lambda n=name, s=settings, p=share, o=own: describe_samples(
                    s, p, task, {**processors, **o}, assembly.rows, result.probes.get(f"datasets.{n}"), bos,
                )
            )  # fmt: skip
    known = {name: one for name, one in samples.items() if one is not None}

    @cache
    def planned(parts: int) -> list[PlannedDataset]:
        if config.mixture.mode != "mixed":
            return [planned_dataset(n, config.datasets[n], one, result.world, parts) for n, one in known.items()]
        if not known or len(known) < len(config.datasets):
            return []
        return [planned_mixture(list(known.values()), config.mixture.batch_size, result.world, parts)]

    return planned
