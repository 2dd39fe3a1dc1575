"""From operations and traffic to seconds, samples and days on a stated device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chatbridge.common.devices import Device
from chatbridge.planning.batches import PlannedDataset
from chatbridge.planning.flops import Work
from chatbridge.planning.links import Links, Transfers
from chatbridge.planning.sharding import Sharding

COMPUTE, COMMUNICATION, COPIES = "compute", "communication", "host copies"


@dataclass(frozen=True)
class Throughput:
    """What to expect of a whole run.

    Attributes:
        step_seconds: mean over the mixture. samples_per_second: over all GPUs.
        step_flops: operations of a step over all GPUs, mean over the mixture. steps: of the whole run.
        days: its length, checkpoints, validation and waiting for data left out.
        compute_seconds: of a step's operations, at the utilisation assumed. transfers: of its traffic.
        serial_seconds: of a step in which nothing overlapped.
        bound: what takes longest and so sets the pace: "compute", "communication" or "host copies".
    """

    step_seconds: float
    samples_per_second: float
    step_flops: float
    steps: int
    days: float
    compute_seconds: float
    transfers: Transfers
    serial_seconds: float
    bound: str


def seconds(work: Mapping[str, Work], device: Device) -> float:
    """Time of one rank's forward and backward pass: every component at the peak of its precision, times utilisation."""
    halves = sum(w.total for w in work.values() if w.half)
    singles = sum(w.total for w in work.values() if not w.half)
    return (halves / device.half_tflops + singles / device.single_tflops) / (1e12 * device.utilisation)


def expected_throughput(
    datasets: Sequence[PlannedDataset], work: Mapping[str, Mapping[str, Work]], device: Device, sharding: Sharding,
    moved: Transfers, links: Links, steps: int,
) -> Throughput:  # fmt: skip
    """The mixture's mean: each dataset weighs as often as a step reads it.

    With more than one process, compute, communication and copies are taken to overlap, as FSDP's prefetching and DDP's
    buckets make them, so that the longest of the three is the step; a single process copies first, then computes.

    Args:
        work: dataset -> component -> operations of one rank's batch. moved: a step's traffic.
    """
    compute = sum(d.share * seconds(work[d.name], device) for d in datasets) * sharding.accumulate
    parts = {COMPUTE: compute, COMMUNICATION: moved.gather + moved.reduce, COPIES: moved.copy}
    if links.shared and sharding.world > 1:
        parts[COMMUNICATION] += parts.pop(COPIES)
    serial = sum(parts.values())
    bound = max(parts, key=parts.__getitem__)
    step = parts[bound] if sharding.world > 1 else serial
    batches = sharding.world * sharding.accumulate
    samples = sum(d.share * d.expected.samples for d in datasets) * batches
    flops = sum(d.share * sum(w.total for w in work[d.name].values()) for d in datasets) * batches
    rate = samples / step if step else 0.0
    return Throughput(step, rate, flops, steps, steps * step / 86400, compute, moved, serial, bound)
