"""From operations to seconds, samples and days on a stated device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chatbridge.planning.batches import PlannedDataset
from chatbridge.planning.devices import Device
from chatbridge.planning.flops import Work


@dataclass(frozen=True)
class Throughput:
    """What to expect of a whole run.

    Attributes:
        step_seconds: mean over the mixture. samples_per_second: over all GPUs.
        step_flops: operations of a step over all GPUs, mean over the mixture. steps: of the whole run.
        days: its length, checkpoints, validation and waiting for data left out.
    """

    step_seconds: float
    samples_per_second: float
    step_flops: float
    steps: int
    days: float


def seconds(work: Mapping[str, Work], device: Device) -> float:
    """Time of one rank's forward and backward pass: every component at the peak of its precision, times utilisation."""
    halves = sum(w.total for w in work.values() if w.half)
    singles = sum(w.total for w in work.values() if not w.half)
    return (halves / device.half_tflops + singles / device.single_tflops) / (1e12 * device.utilisation)


def expected_throughput(
    datasets: Sequence[PlannedDataset],
    work: Mapping[str, Mapping[str, Work]],
    device: Device,
    world: int,
    accumulate: int,
    steps: int,
) -> Throughput:
    """The mixture's mean: each dataset weighs as often as a step reads it.

    Args:
        work: dataset -> component -> operations of one rank's batch. accumulate: batches per step.
    """
    step_seconds = sum(d.share * seconds(work[d.name], device) for d in datasets) * accumulate
    samples = sum(d.share * d.expected.samples for d in datasets) * world * accumulate
    flops = sum(d.share * sum(w.total for w in work[d.name].values()) for d in datasets) * world * accumulate
    rate = samples / step_seconds if step_seconds else 0.0
    return Throughput(step_seconds, rate, flops, steps, steps * step_seconds / 86400)
