"""From operations and traffic to seconds, samples and days on a stated device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from chatbridge.common.devices import Device
from chatbridge.planning.batch_shapes import PlannedDataset
from chatbridge.planning.placement import Placement
from chatbridge.planning.simulator import Work

COMPUTE, COMMUNICATION, COPIES = "compute", "communication", "host copies"


@dataclass(frozen=True)
class Throughput:
    """What to expect of a whole run.

    Attributes:
        step_seconds: mean over the mixture. samples_per_second: over all GPUs.
        step_flops: operations of a step over all GPUs, mean over the mixture. steps: of the whole run.
        days: its length, checkpoints, validation and waiting for data left out.
        compute_seconds: of a step's operations, at the utilisation assumed.
        transfers: seconds of a step's traffic: "gather" of layers, "reduce" of gradients, "copy" from host memory.
        serial_seconds: of a step in which nothing overlapped.
        bound: what takes longest and so sets the pace: "compute", "communication" or "host copies".
    """

    step_seconds: float
    samples_per_second: float
    step_flops: float
    steps: int
    days: float
    compute_seconds: float
    transfers: dict[str, float]
    serial_seconds: float
    bound: str


def seconds(work: Iterable[Work], device: Device) -> float:
    """Time of one rank's operations: each at the peak of its precision, times utilisation."""
    work = list(work)
    singles = sum(w.single for w in work)
    halves = sum(w.total for w in work) - singles
    return (halves / device.half_tflops + singles / device.single_tflops) / (1e12 * device.utilisation)


def transfer_seconds(moved: float, learnt: float, where: Placement) -> dict[str, float]:
    """The seconds of one step's traffic, as ring algorithms move the bytes.

    Of a sum every process receives twice what is summed less its own part. A ring over several nodes crosses from node
    to node once, so that the slower link sets its pace.

    Args:
        moved: bytes of layers that a process puts together for one batch. learnt: bytes of what trains.
    """
    others = (where.world - 1) / where.world
    rate = 1e9 * (min(where.link_gbs, where.network_gbs) if where.nodes > 1 else where.link_gbs)
    moved *= where.accumulate
    copied = moved / where.world if where.offload else 0.0
    copy = copied / (1e9 * where.host_gbs)
    return {"gather": moved * others / rate, "reduce": 2 * learnt * others / rate, "copy": copy}


def expected_throughput(
    datasets: Sequence[PlannedDataset], work: Mapping[str, Mapping[str, Work]], update: float,
    transfers: dict[str, float], where: Placement, steps: int,
) -> Throughput:  # fmt: skip
    """The mixture's mean: each dataset weighs as often as a step reads it.

    With more than one process, compute, communication and copies are taken to overlap, as FSDP's prefetching and DDP's
    buckets make them, so that the longest of the three is the step; a single process copies first, then computes.

    Args:
        work: dataset -> component -> operations of one rank's batch. update: operations of the optimizers' step.
        transfers: see `transfer_seconds`.
    """
    compute = sum(d.share * seconds(work[d.name].values(), where.device) for d in datasets) * where.accumulate
    compute += seconds([Work(update, 0.0)], where.device)
    parts = {COMPUTE: compute, COMMUNICATION: transfers["gather"] + transfers["reduce"], COPIES: transfers["copy"]}
    serial = sum(parts.values())
    if not where.device.nvlink and where.world > 1:  # collectives and copies share their lanes
        parts[COMMUNICATION] += parts.pop(COPIES)
    bound = max(parts, key=parts.__getitem__)
    step = parts[bound] if where.world > 1 else serial
    batches = where.world * where.accumulate
    samples = sum(d.share * d.expected.samples for d in datasets) * batches
    flops = sum(d.share * sum(w.total for w in work[d.name].values()) for d in datasets) * batches
    flops += update * where.world
    rate = samples / step if step else 0.0
    return Throughput(step, rate, flops, steps, steps * step / 86400, compute, transfers, serial, bound)
