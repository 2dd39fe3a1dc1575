"""From operations and traffic to seconds, samples and days on a stated device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chatbridge.common.devices import Device
from chatbridge.planning.batches import PlannedDataset
from chatbridge.planning.sharding import LanguageShards, Sharding
from chatbridge.planning.steps import Work

COMPUTE, COMMUNICATION, COPIES = "compute", "communication", "host copies"

NVLINK_GBS, PCIE_GBS, NETWORK_GBS = 200.0, 25.0, 25.0
"""Assumed, GB/s: what a GPU receives in a collective over NVLink (data sheets: 300 and more), what it receives over
PCIe 4.0 x16 (31.5), and what a node receives over the network (a link of 200 Gbit/s)."""


@dataclass(frozen=True)
class Links:
    """Rates, GB/s, all assumed.

    Attributes:
        gpu: that a GPU receives from others of its node. host: from host memory. network: that a node receives.
        shared: whether the first two go over the same lanes, as they do without NVLink.
    """

    gpu: float
    host: float
    network: float
    shared: bool

    def __post_init__(self) -> None:
        for name in ("gpu", "host", "network"):
            if not 0 < getattr(self, name) < math.inf:
                told = f"the rate of a link must be above 0 GB/s and finite, not {getattr(self, name)} ({name})"
                raise ValueError(told)


def links_of(
    device: Device, gpu: float | None = None, network: float | None = None, host: float | None = None
) -> Links:
    """The assumed rates of a device, with any of them replaced."""
    usual = NVLINK_GBS if device.nvlink else PCIE_GBS
    rates = [
        usual if given is None else given for given, usual in ((gpu, usual), (host, PCIE_GBS), (network, NETWORK_GBS))
    ]
    return Links(*rates, not device.nvlink)


@dataclass(frozen=True)
class Transfers:
    """The seconds of one step's traffic: layers gathered, gradients reduced, layers copied from host memory."""

    gather: float
    reduce: float
    copy: float


def transfers(learnt: float, shards: LanguageShards | None, links: Links, sharding: Sharding) -> Transfers:
    """The seconds, as ring algorithms move the bytes: of a sum, twice what is summed less one process' part.

    A ring over several nodes crosses from node to node once, so that the slower link sets its pace.

    Args:
        learnt: bytes of what trains.
    """
    world, others = sharding.world, (sharding.world - 1) / sharding.world
    rate = 1e9 * (min(links.gpu, links.network) if sharding.nodes > 1 else links.gpu)
    gathered = shards.gathered(world) * sharding.accumulate if sharding.sharded else 0.0
    copied = gathered / world if sharding.offload else 0.0
    return Transfers(gathered * others / rate, 2 * learnt * others / rate, copied / (1e9 * links.host))


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
    """Time of one rank's forward and backward pass: operations at the peak of their precision, times utilisation."""
    singles = sum(w.single for w in work.values())
    halves = sum(w.total for w in work.values()) - singles
    return (halves / device.half_tflops + singles / device.single_tflops) / (1e12 * device.utilisation)


def expected_throughput(
    datasets: Sequence[PlannedDataset], work: Mapping[str, Mapping[str, Work]], update: float, device: Device,
    sharding: Sharding, moved: Transfers, links: Links, steps: int,
) -> Throughput:  # fmt: skip
    """The mixture's mean: each dataset weighs as often as a step reads it.

    With more than one process, compute, communication and copies are taken to overlap, as FSDP's prefetching and DDP's
    buckets make them, so that the longest of the three is the step; a single process copies first, then computes.

    Args:
        work: dataset -> component -> operations of one rank's batch. update: operations of the optimiser's step.
        moved: a step's traffic.
    """
    compute = sum(d.share * seconds(work[d.name], device) for d in datasets) * sharding.accumulate
    compute += seconds({"optimiser": Work(update, 0.0)}, device)
    parts = {COMPUTE: compute, COMMUNICATION: moved.gather + moved.reduce, COPIES: moved.copy}
    if links.shared and sharding.world > 1:
        parts[COMMUNICATION] += parts.pop(COPIES)
    serial = sum(parts.values())
    bound = max(parts, key=parts.__getitem__)
    step = parts[bound] if sharding.world > 1 else serial
    batches = sharding.world * sharding.accumulate
    samples = sum(d.share * d.expected.samples for d in datasets) * batches
    flops = sum(d.share * sum(w.total for w in work[d.name].values()) for d in datasets) * batches
    flops += update * sharding.world
    rate = samples / step if step else 0.0
    return Throughput(step, rate, flops, steps, steps * step / 86400, compute, moved, serial, bound)
