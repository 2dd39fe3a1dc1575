"""What a run costs in one situation, and in the other situations that it could be in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from chatbridge.common.devices import Device
from chatbridge.planning.batches import PlannedDataset
from chatbridge.planning.flops import Work, batch_work
from chatbridge.planning.geometry import Geometry
from chatbridge.planning.inventory import Inventory
from chatbridge.planning.links import Links, traffic, transfers
from chatbridge.planning.memory import CONTEXT_BYTES, Resident, StepMemory, resident, step_memory
from chatbridge.planning.sharding import Sharding
from chatbridge.planning.throughput import Throughput, expected_throughput

MARGIN = 0.15
"""How far the memory's prediction is trusted: a peak nearer than this to the device's memory gets a warning."""


@dataclass(frozen=True)
class Costs:
    """Memory of a GPU and time of a step; `work` and `memory` by dataset, of one rank's batch."""

    resident: Resident
    work: dict[str, dict[str, Work]]
    memory: dict[str, StepMemory]
    throughput: Throughput

    @property
    def peak(self) -> float:
        """Bytes per GPU at the worst moment of the worst dataset, the driver's context included."""
        return self.resident.always + max(m.peak for m in self.memory.values()) + CONTEXT_BYTES


@dataclass(frozen=True)
class Situation:
    """A run, where it takes place, and how it is spread.

    Attributes:
        planned: how many parts every batch is cut into -> the datasets with batches so small.
        optimiser, steps: ``run.optimizer``, and optimiser steps of the whole run.
    """

    inventory: Inventory
    geometry: Geometry
    sharding: Sharding
    device: Device
    links: Links
    optimiser: str
    steps: int
    planned: Callable[[int], list[PlannedDataset]]

    def costs(self, datasets: Sequence[PlannedDataset]) -> Costs:
        """What these datasets' batches cost here."""
        geometry, sharding = self.geometry, self.sharding
        always = resident(self.inventory, geometry, sharding, self.optimiser)
        work = {d.name: batch_work(geometry, d.expected) for d in datasets}
        memory = {d.name: step_memory(geometry, d.worst, always, sharding) for d in datasets}
        moved = transfers(traffic(self.inventory, geometry.shards, sharding), self.links, sharding)
        rate = expected_throughput(datasets, work, self.device, sharding, moved, self.links, self.steps)
        return Costs(always, work, memory, rate)


@dataclass(frozen=True)
class Variant:
    """One way to run it.

    Attributes:
        strategy, offload: ``run.strategy``, ``run.offload_frozen``.
        checkpointing: ``model.llm.gradient_checkpointing``.
        chosen: whether it is the configuration's own. options: ``--options`` that lead from there to it, besides
            smaller batches.
        uncut: bytes per GPU with the batches as they are configured.
        parts: how many parts every batch must be cut into to fit, so that a step accumulates as many times more; None
            where not even the smallest do.
        samples: the most samples of one part on a GPU. accumulate: batches per step then.
        peak: bytes per GPU then. pinned: locked host memory per node. throughput: then.
    """

    strategy: str
    offload: bool
    checkpointing: bool
    chosen: bool
    options: str
    uncut: float
    parts: int | None
    samples: float
    accumulate: int
    peak: float
    pinned: float
    throughput: Throughput


def variants(here: Situation, sizes: Sequence[int]) -> list[Variant]:
    """Every combination of strategy, offloading and checkpointing, with the largest batches that fit.

    To fit is to leave `MARGIN` of the device's memory free.

    Args:
        sizes: the configured batch sizes in samples over all GPUs; only their divisors can be taken.
    """
    cuts = _cuts(here.planned(1), [size // here.sharding.world for size in sizes])
    batches = {parts: here.planned(parts) for parts in cuts}
    ways = [("ddp", False), ("fsdp", False), ("fsdp", True)]
    if here.sharding.world == 1:
        ways.remove(("fsdp", False))  # one process has nobody to share with
    return [_variant(here, batches, *way, wanted) for way in ways for wanted in (False, True)]


def _variant(
    here: Situation, batches: dict[int, list[PlannedDataset]], strategy: str, offload: bool, checkpointing: bool
) -> Variant:
    geometry = here.geometry.with_checkpointing(checkpointing)
    uncut, fitting = 0.0, None
    for parts, datasets in batches.items():
        accumulate = here.sharding.accumulate * parts
        sharding = replace(here.sharding, strategy=strategy, offload=offload, accumulate=accumulate)
        there = replace(here, geometry=geometry, sharding=sharding)
        costs = there.costs(datasets)
        uncut = costs.peak if parts == 1 else uncut
        if costs.peak <= (1 - MARGIN) * here.device.memory_gb * 1e9:
            fitting = parts
            break
    keys = {
        f"run.strategy={strategy}": strategy != here.sharding.strategy,
        f"run.offload_frozen={offload}".lower(): offload != here.sharding.offload,
        f"model.llm.gradient_checkpointing={checkpointing}".lower(): checkpointing != here.geometry.llm.checkpointing,
    }
    changed = [key for key, needed in keys.items() if needed]
    accumulates = [f"run.accum_grad_iters={accumulate}"] if accumulate != here.sharding.accumulate else []
    return Variant(
        strategy, offload, checkpointing, not changed, " ".join(changed + accumulates), uncut, fitting,
        max(d.worst.samples for d in datasets), accumulate, costs.peak, costs.resident.pinned, costs.throughput,
    )  # fmt: skip


def _cuts(datasets: Sequence[PlannedDataset], per_rank: Sequence[int]) -> list[int]:
    """Numbers of parts that every batch can be cut into: 1, and so on up to single rows."""
    rows = min(d.worst.positions / d.worst.length for d in datasets)
    common = math.gcd(*per_rank)
    every = range(1, max(1, int(rows)) + 1)
    return [n for n in every if (common % n == 0 if common else n & (n - 1) == 0)]
