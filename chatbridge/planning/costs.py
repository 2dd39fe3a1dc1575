"""What a run costs where it is placed, and where else, or how else, it would fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import nn

from chatbridge.planning.batch_shapes import PlannedDataset
from chatbridge.planning.fsdp import ShardGroups
from chatbridge.planning.memory import MARGIN, ResidentMemory, StepMemory, resident_memory, step_memory
from chatbridge.planning.parameters import ParameterCount
from chatbridge.planning.placement import Placement
from chatbridge.planning.simulator import Simulator, Step, Work
from chatbridge.planning.throughput import Throughput, expected_throughput, transfer_seconds


@dataclass(frozen=True)
class Costs:
    """Memory of a GPU and time of a step; `work` and `memory` by dataset, of one rank's batch."""

    resident: ResidentMemory
    work: dict[str, dict[str, Work]] = field(default_factory=dict)
    memory: dict[str, StepMemory] = field(default_factory=dict)
    throughput: Throughput | None = None

    @property
    def peak(self) -> float:
        """Bytes per GPU at the worst moment of the worst dataset, the driver's context included."""
        return self.resident.always + max((m.peak for m in self.memory.values()), default=0.0)


@dataclass(frozen=True)
class Variant:
    """Another way to run, or this one.

    Attributes:
        strategy, offload, checkpointing: ``run.strategy``, ``run.offload_frozen``,
            ``model.llm.gradient_checkpointing``.
        chosen: whether it is the configuration's own. changes: the keys that lead from there to it, besides smaller
            batches; options: those and `accumulate`, for ``--options``.
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
    options: str


class CostModel:
    """The simulated steps of a run, and arithmetic on them for every placement over as many processes.

    Args:
        model: on the meta device; it is changed. rebuild: makes another, with gradient checkpointing or without.
        optimizers: over its parameters. count: its parameters.
        batches: how many parts every batch is cut into -> the datasets with batches so small.
        where: the configuration's own placement. amp: mixed precision. steps: optimizer steps of the whole run.
    """

    def __init__(
        self, model: nn.Module, rebuild: Callable[[bool], nn.Module], optimizers: Sequence[torch.optim.Optimizer],
        count: ParameterCount, batches: Callable[[int], list[PlannedDataset]], where: Placement, amp: str | None,
        steps: int,
    ):  # fmt: skip
        self.count, self.batches, self.where, self.steps = count, cache(batches), where, steps
        self.groups = ShardGroups(getattr(model, "llm", None))
        own = Simulator(model, amp, where.world)
        self.update = own.update(optimizers)

        @cache
        def simulator(checkpointing: bool) -> Simulator:
            return own if checkpointing == where.checkpointing else Simulator(rebuild(checkpointing), amp, where.world)

        self._simulator = simulator

    def resident(self, where: Placement) -> ResidentMemory:
        return resident_memory(self.count, self.groups, where, self.update.state)

    def costs(self, where: Placement) -> Costs:
        """What the run costs there with the batches that are configured."""
        datasets, simulator = self.batches(1), self._simulator(where.checkpointing)
        work = {d.name: simulator.work(d.expected) for d in datasets}
        memory = {d.name: max((self._memory(simulator.step(s), where) for s in d.worst), key=lambda m: m.peak)
                  for d in datasets}  # fmt: skip
        return Costs(self.resident(where), work, memory, self._throughput(work, where, 1))

    def _memory(self, step: Step, where: Placement) -> StepMemory:
        return step_memory(step, self.groups.placed(where), where, self.update, self.count.trainable_bytes)

    def _throughput(self, work: dict[str, dict[str, Work]], where: Placement, parts: int) -> Throughput:
        """With batches cut into so many parts there are as many operations, but layers are gathered for each."""
        moved = parts * self.groups.placed(where).moved
        transfers = transfer_seconds(moved, self.count.trainable_bytes, where)
        return expected_throughput(self.batches(1), work, self.update.flops, transfers, where, self.steps)

    def variants(self, sizes: Sequence[int], with_checkpointing: bool) -> list[Variant]:
        """Every combination of strategy, offloading and checkpointing, with the largest batches that fit.

        To fit is to leave `MARGIN` of the device's memory free.

        Args:
            sizes: the configured batch sizes in samples over all GPUs; only their divisors can be taken.
            with_checkpointing: whether the language model can be built with checkpointing and without.
        """
        strategies = [("ddp", False), ("fsdp", False), ("fsdp", True)]
        if self.where.world == 1:
            strategies.remove(("fsdp", False))  # one process has nobody to share with
        if any(part.trainable for part in self.count.parts if part.component == "llm"):
            strategies = strategies[:1]  # fsdp shards frozen language models only
        return [
            self._variant(
                replace(self.where, strategy=strategy, offload=offload, checkpointing=checkpointing), self._cuts(sizes)
            )
            for strategy, offload in strategies
            for checkpointing in ((False, True) if with_checkpointing else (self.where.checkpointing,))
        ]

    def _cuts(self, sizes: Sequence[int]) -> list[int]:
        """Numbers of parts that every batch can be cut into: 1, and so on up to single rows."""
        rows = min(d.worst[0].positions / d.worst[0].length for d in self.batches(1))
        common = math.gcd(*(size // self.where.world for size in sizes))
        every = range(1, max(1, int(rows)) + 1)
        return [n for n in every if (common % n == 0 if common else n & (n - 1) == 0)]

    def _variant(self, where: Placement, cuts: Sequence[int]) -> Variant:
        costs, room, most = self.costs(where), (1 - MARGIN) * where.device.memory_gb * 1e9, cuts[-1]

        def peak(parts: int) -> float:
            if parts == 1:
                return costs.peak
            share, cut = (1 / parts - 1 / most) / (1 - 1 / most), replace(where, accumulate=where.accumulate * parts)
            return costs.resident.always + max(self._memory(s, cut).peak for s in self._cut_steps(where, share, most))

        fitting = next((parts for parts in cuts if peak(parts) <= room), None)
        parts = fitting or cuts[-1]
        keys = {
            f"run.strategy={where.strategy}": where.strategy != self.where.strategy,
            f"run.offload_frozen={where.offload}".lower(): where.offload != self.where.offload,
            f"model.llm.gradient_checkpointing={where.checkpointing}".lower():
                where.checkpointing != self.where.checkpointing,
        }  # fmt: skip
        changes = [key for key, needed in keys.items() if needed]
        accumulate = where.accumulate * parts
        options = changes + ([f"run.accum_grad_iters={accumulate}"] if parts > 1 else [])
        return Variant(
            where.strategy, where.offload, where.checkpointing, not changes, changes, costs.peak, fitting,
            max(shape.samples for d in self.batches(parts) for shape in d.worst), accumulate, peak(parts),
            costs.resident.pinned, self._throughput(costs.work, where, parts), " ".join(options),
        )  # fmt: skip

    def _cut_steps(self, where: Placement, share: float, most: int) -> list[Step]:
        """The datasets' worst steps with smaller batches.

        Both the whole batch and one of `most` parts are simulated; between them every number is on a straight line, of
        which `share` is the way back to the whole.
        """
        simulator = self._simulator(where.checkpointing)
        pairs = [
            (simulator.step(whole), simulator.step(smallest))
            for dataset, cut in zip(self.batches(1), self.batches(most), strict=True)
            for whole, smallest in zip(dataset.worst, cut.worst, strict=False)
        ]

        def between(a: float, b: float) -> float:
            return b + share * (a - b)

        return [
            Step(
                {phase: between(peak, smallest.peaks.get(phase, 0)) for phase, peak in whole.peaks.items()},
                between(whole.kept, smallest.kept), between(whole.left, smallest.left), whole.flops,
            )
            for whole, smallest in pairs
        ]  # fmt: skip
