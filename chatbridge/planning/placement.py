"""Where and how a run computes: GPUs, the strategy that spreads it over them, and the rates at which bytes travel."""

from __future__ import annotations

import math
from dataclasses import dataclass

from chatbridge.common.devices import Device

STRATEGIES = ("ddp", "fsdp")

NVLINK_GBS, PCIE_GBS, NETWORK_GBS = 200.0, 25.0, 25.0
"""Assumed, GB/s: what a GPU receives in a collective over NVLink (data sheets: 300 and more), what it receives over
PCIe 4.0 x16 (31.5), and what a node receives over the network (a link of 200 Gbit/s)."""


@dataclass(frozen=True)
class Placement:
    """Where and how a run computes.

    Attributes:
        device: a GPU. gpus: of a node, a process each. nodes: machines.
        strategy: "ddp" keeps everything on every GPU; "fsdp" keeps a part of the language model there and gathers its
            layers as they are needed. What trains is whole on every GPU either way, and so are the encoders.
        offload: fsdp's parts are kept in pinned host memory. checkpointing: ``model.llm.gradient_checkpointing``.
        accumulate: batches in a step.
        link_gbs, network_gbs, host_gbs: GB/s that a GPU receives from others of its node, a node over the network, and
            a GPU from host memory. All assumed.

    Raises:
        ValueError: for what cannot be.
    """

    device: Device
    gpus: int = 1
    nodes: int = 1
    strategy: str = "ddp"
    offload: bool = False
    checkpointing: bool = False
    accumulate: int = 1
    link_gbs: float = NVLINK_GBS
    network_gbs: float = NETWORK_GBS
    host_gbs: float = PCIE_GBS

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.gpus < 1:
            raise ValueError("a run takes at least one GPU on at least one node")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"run.strategy: '{self.strategy}' is not one of {', '.join(STRATEGIES)}")
        if self.offload and not self.sharded:
            raise ValueError("run.offload_frozen: layers come to the GPU one by one under strategy fsdp only")
        for rate in (self.link_gbs, self.network_gbs, self.host_gbs):
            if not 0 < rate < math.inf:
                raise ValueError(f"the rate of a link must be above 0 GB/s and finite, not {rate}")

    @property
    def world(self) -> int:
        """Processes."""
        return self.gpus * self.nodes

    @property
    def sharded(self) -> bool:
        return self.strategy == "fsdp"
