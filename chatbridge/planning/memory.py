"""Memory of a GPU: what is always there, and what a step takes on top of it."""

from __future__ import annotations

from dataclasses import dataclass

from chatbridge.planning.fsdp import LanguageModelBytes, ShardGroups
from chatbridge.planning.parameters import ParameterCount
from chatbridge.planning.placement import Placement
from chatbridge.planning.recorder import BRIDGES
from chatbridge.planning.simulator import Step, Update

CONTEXT_BYTES = 1.0e9
"""Assumed, not computed: what the driver, libraries and communication take outside PyTorch's allocator."""

MARGIN = 0.15
"""How far the memory's prediction is trusted: a peak nearer than this to the device's memory gets a warning."""


@dataclass(frozen=True)
class ResidentMemory:
    """Bytes per GPU that are there throughout.

    Attributes:
        weights, buffers, optimizer: what is kept on the GPU of each.
        buckets: the reducer's, where there is more than one process.
        gradients: those outside buckets when a step ends; with more than one process they are views of the buckets by
            then, but not before the last of the batches that a step accumulates.
        learnt: what trains, and hence all gradients.
        pinned: host memory of a node that is locked for offloaded weights.
        building: host memory of a node for the one copy of the language model that is cut into pieces.
    """

    weights: float
    buffers: float
    optimizer: float
    buckets: float
    gradients: float
    learnt: float
    pinned: float = 0.0
    building: float = 0.0

    @property
    def always(self) -> float:
        """The driver's context included."""
        return self.weights + self.buffers + self.optimizer + self.buckets + CONTEXT_BYTES


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


def resident_memory(
    count: ParameterCount, groups: ShardGroups, where: Placement, state: float | None
) -> ResidentMemory:
    """What is always there. `state`: bytes of the optimizers' state; None for a run that trains nothing."""
    learnt = 0.0 if state is None else float(count.trainable_bytes)
    llm = groups.placed(where)
    weights = float(count.parameter_bytes - groups.total + llm.kept)
    buckets, gradients = (learnt, 0.0) if where.world > 1 else (0.0, learnt)
    pinned = llm.pinned * where.gpus
    return ResidentMemory(weights, count.buffer_bytes, state or 0.0, buckets, gradients, learnt, pinned, llm.building)


def step_memory(step: Step, llm: LanguageModelBytes, where: Placement, update: Update, learnt: float) -> StepMemory:
    """What a simulated step takes in a placement. `learnt`: bytes of all gradients."""
    moments = {phase: bytes + llm.gathered.get(phase, 0) for phase, bytes in step.peaks.items()}
    if where.accumulate > 1:  # gradients of earlier batches; a single process' own make room while bridges go back
        moments = {p: n + learnt * (p != BRIDGES or where.world > 1) for p, n in moments.items()}
    moments["update"] = step.left + update.temporary
    return StepMemory(step.kept, max(llm.gathered.values(), default=0), moments)
