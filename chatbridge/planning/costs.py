"""What a run costs in one situation, and in the other situations that it could be in."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from chatbridge.common.devices import Device
from chatbridge.planning.batches import BatchShape, PlannedDataset
from chatbridge.planning.inventory import Inventory
from chatbridge.planning.recorder import BACKWARD, ENCODE, FORWARD, LOSS
from chatbridge.planning.sharding import LanguageShards, Sharding
from chatbridge.planning.steps import Simulator, Step, Update, Work
from chatbridge.planning.throughput import Links, Throughput, expected_throughput, transfers

CONTEXT_BYTES = 1.0e9
"""Assumed, not computed: what the driver, libraries and communication take outside PyTorch's allocator."""

MARGIN = 0.15
"""How far the memory's prediction is trusted: a peak nearer than this to the device's memory gets a warning."""


@dataclass(frozen=True)
class Resident:
    """Bytes per GPU that are there throughout.

    Attributes:
        weights, buffers, optimiser: what is kept on the GPU of each.
        buckets: the reducer's, where there is more than one process.
        gradients: those outside buckets when a step ends; with more than one process they are views of the buckets by
            then, but not before the last of the batches that a step accumulates.
        learnt: what trains, and hence all gradients.
        pinned: host memory of a node that is locked for offloaded weights.
        building: host memory of a node for the one copy of the language model that is cut into pieces.
    """

    weights: float
    buffers: float
    optimiser: float
    buckets: float
    gradients: float
    learnt: float
    pinned: float = 0.0
    building: float = 0.0

    @property
    def always(self) -> float:
        return self.weights + self.buffers + self.optimiser + self.buckets


@dataclass(frozen=True)
class StepMemory:
    """Bytes per GPU of one dataset's step, on top of what is always there.

    Attributes:
        activations: what the forward pass leaves, the batch included.
        gathered: fsdp's layers that are whole or on their way, at most.
        moments: phase of the step, or "update" -> bytes at the most.
    """

    activations: float
    gathered: float
    moments: dict[str, float]

    @property
    def moment(self) -> str:
        """The phase that takes the most."""
        return max(self.moments, key=self.moments.__getitem__)

    @property
    def peak(self) -> float:
        return max(self.moments.values())


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


def resident(count: Inventory, shards: LanguageShards | None, sharding: Sharding, state: float | None) -> Resident:
    """What is always there.

    Args:
        shards: None for a model without a language model to shard. state: bytes of the optimisers' state; None for a
            run that trains nothing.
    """
    learnt = 0.0 if state is None else float(count.trainable_bytes)
    weights, pinned, building = float(count.parameter_bytes), 0.0, 0.0
    if sharding.sharded and shards is not None:
        world = sharding.world
        weights += shards.whole - shards.total + (0 if sharding.offload else shards.kept(world))
        pinned = shards.pinned(world) * world / sharding.nodes if sharding.offload else 0.0
        building = shards.total
    buckets, gradients = (learnt, 0.0) if sharding.world > 1 else (0.0, learnt)
    return Resident(weights, count.buffer_bytes, state or 0.0, buckets, gradients, learnt, pinned, building)


def step_memory(step: Step, shards: LanguageShards, sharding: Sharding, update: Update) -> StepMemory:
    """What a simulated step takes, with fsdp's gathered layers where it comes to them."""
    layer, arriving = shards.at_layer(sharding), shards.at_forward(sharding)
    gathered = {ENCODE: shards.at_embedding(sharding), LOSS: shards.at_loss(sharding)}
    gathered |= {FORWARD: layer, BACKWARD: layer}
    moments = {phase: bytes + gathered.get(phase, 0.0) for phase, bytes in step.peaks.items()}
    moments[FORWARD] = max(moments.get(FORWARD, 0.0), step.last_layer + arriving)
    moments["update"] = step.left + update.temporary
    return StepMemory(step.kept, max(arriving, *gathered.values()), moments)


@dataclass(frozen=True)
class Situation:
    """A run, where it takes place, and how it is spread.

    Attributes:
        planned: how many parts every batch is cut into -> the datasets with batches so small.
        checkpointing: ``model.llm.gradient_checkpointing``. steps: optimiser steps of the whole run.
    """

    inventory: Inventory
    simulator: Simulator
    update: Update
    shards: LanguageShards
    sharding: Sharding
    device: Device
    links: Links
    steps: int
    planned: Callable[[int], list[PlannedDataset]]
    checkpointing: bool = False

    def costs(self, datasets: Sequence[PlannedDataset]) -> Costs:
        """What these datasets' batches cost here."""
        always = resident(self.inventory, self.shards, self.sharding, self.update.state)
        held = self.sharding.accumulate > 1
        work = {d.name: self.simulator.work(d.expected, self.checkpointing, held) for d in datasets}
        memory = {d.name: max(map(self._memory, d.worst), key=lambda m: m.peak) for d in datasets}
        shards = replace(self.shards, checkpointing=self.checkpointing)
        moved = transfers(always.learnt, shards, self.links, self.sharding)
        rate = expected_throughput(
            datasets, work, self.update.flops, self.device, self.sharding, moved, self.links, self.steps
        )
        return Costs(always, work, memory, rate)

    def _memory(self, shape: BatchShape) -> StepMemory:
        step = self.simulator.step(shape, self.checkpointing, self.sharding.accumulate > 1)
        return step_memory(step, self.shards, self.sharding, self.update)


@dataclass(frozen=True)
class Variant:
    """One way to run it.

    Attributes:
        strategy, offload: ``run.strategy``, ``run.offload_frozen``.
        checkpointing: ``model.llm.gradient_checkpointing``.
        chosen: whether it is the configuration's own. changes: the keys that lead from there to it, besides smaller
            batches.
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
    changes: list[str]
    uncut: float
    parts: int | None
    samples: float
    accumulate: int
    peak: float
    pinned: float
    throughput: Throughput
    options: str = field(default="")


def variants(here: Situation, sizes: Sequence[int], either: bool = True) -> list[Variant]:
    """Every combination of strategy, offloading and checkpointing, with the largest batches that fit.

    To fit is to leave `MARGIN` of the device's memory free.

    Args:
        sizes: the configured batch sizes in samples over all GPUs; only their divisors can be taken.
        either: whether the language model can be built with checkpointing and without.
    """
    cuts = _cuts(here.planned(1), [size // here.sharding.world for size in sizes])
    ways = [("ddp", False), ("fsdp", False), ("fsdp", True)]
    if here.sharding.world == 1:
        ways.remove(("fsdp", False))  # one process has nobody to share with
    wanted = (False, True) if either else (here.checkpointing,)
    return [_variant(here, cuts, *way, checkpointing) for way in ways for checkpointing in wanted]


def _variant(here: Situation, cuts: Sequence[int], strategy: str, offload: bool, checkpointing: bool) -> Variant:
    @cache
    def cost(parts: int) -> Costs:
        accumulate = here.sharding.accumulate * parts
        sharding = replace(here.sharding, strategy=strategy, offload=offload, accumulate=accumulate)
        return replace(here, sharding=sharding, checkpointing=checkpointing).costs(here.planned(parts))

    def fits(parts: int) -> bool:
        return cost(parts).peak <= (1 - MARGIN) * here.device.memory_gb * 1e9

    parts = 1 if fits(1) else cuts[-1]
    fitting = parts if fits(parts) else None
    if parts > 1 and fitting:
        parts = fitting = cuts[bisect_left(cuts, True, key=fits)]
    costs, accumulate = cost(parts), here.sharding.accumulate * parts
    keys = {
        f"run.strategy={strategy}": strategy != here.sharding.strategy,
        f"run.offload_frozen={offload}".lower(): offload != here.sharding.offload,
        f"model.llm.gradient_checkpointing={checkpointing}".lower(): checkpointing != here.checkpointing,
    }
    changes = [key for key, needed in keys.items() if needed]
    accumulates = [f"run.accum_grad_iters={accumulate}"] if accumulate != here.sharding.accumulate else []
    samples = max(shape.samples for d in here.planned(parts) for shape in d.worst)
    return Variant(
        strategy, offload, checkpointing, not changes, changes, cost(1).peak, fitting, samples, accumulate, costs.peak,
        costs.resident.pinned, costs.throughput, " ".join(changes + accumulates),
    )  # fmt: skip


def _cuts(datasets: Sequence[PlannedDataset], per_rank: Sequence[int]) -> list[int]:
    """Numbers of parts that every batch can be cut into: 1, and so on up to single rows."""
    rows = min(d.worst[0].positions / d.worst[0].length for d in datasets)
    common = math.gcd(*per_rank)
    every = range(1, max(1, int(rows)) + 1)
    return [n for n in every if (common % n == 0 if common else n & (n - 1) == 0)]
