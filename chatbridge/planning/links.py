"""What travels between GPUs, and between GPU and host memory, in a step; and how long that takes at assumed rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from chatbridge.common.devices import Device
from chatbridge.planning.inventory import Inventory
from chatbridge.planning.sharding import LanguageShards, Sharding

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


@dataclass(frozen=True)
class Traffic:
    """What one GPU receives.

    Attributes:
        gathered: bytes of the language model from other GPUs, a batch. reduced: of gradients, a step.
        copied: bytes of the language model from host memory, a batch.
    """

    gathered: float
    reduced: float
    copied: float


@dataclass(frozen=True)
class Transfers:
    """The seconds of one step's traffic: layers gathered, gradients reduced, layers copied from host memory."""

    gather: float
    reduce: float
    copy: float


def links_of(
    device: Device, gpu: float | None = None, network: float | None = None, host: float | None = None
) -> Links:
    """The assumed rates of a device, with any of them replaced."""
    usual = NVLINK_GBS if device.nvlink else PCIE_GBS
    return Links(
        usual if gpu is None else gpu,
        PCIE_GBS if host is None else host,
        NETWORK_GBS if network is None else network,
        not device.nvlink,
    )


def traffic(inventory: Inventory, shards: LanguageShards, sharding: Sharding) -> Traffic:
    """The bytes, as ring algorithms move them: of a sum, twice what is summed less one process' part."""
    world, others = sharding.world, (sharding.world - 1) / sharding.world
    gathered = shards.gathered(world) if sharding.sharded else 0.0
    copied = gathered / world if sharding.offload else 0.0
    return Traffic(gathered * others, 2 * inventory.trainable_bytes * others, copied)


def transfers(moved: Traffic, links: Links, sharding: Sharding) -> Transfers:
    """The seconds. A ring over several nodes crosses from node to node once, so that the slower link sets its pace."""
    rate = 1e9 * (min(links.gpu, links.network) if sharding.nodes > 1 else links.gpu)
    batches = sharding.accumulate
    return Transfers(moved.gathered * batches / rate, moved.reduced / rate, moved.copied * batches / (1e9 * links.host))
