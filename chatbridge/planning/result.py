"""What a plan is asked for, and what it says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chatbridge.common.devices import Device
from chatbridge.planning.batches import PlannedDataset
from chatbridge.planning.costs import CONTEXT_BYTES, Resident, StepMemory, Variant
from chatbridge.planning.inventory import Inventory
from chatbridge.planning.probe import Probe
from chatbridge.planning.sharding import Sharding
from chatbridge.planning.steps import Work
from chatbridge.planning.throughput import Links, Throughput


@dataclass(frozen=True)
class PlanOptions:
    """Where a run is to take place, and how closely its data are looked at.

    Attributes:
        device: a name of `DEVICES`. tflops, memory_gb, utilisation: instead of the device's own numbers.
        gpus: per node; None takes this machine's, or 8 where it has none. nodes: how many.
        strategy: "ddp" or "fsdp"; None takes ``run.strategy`` where the run has one, else "ddp".
        link_gbs, network_gbs, host_gbs: GB/s that a GPU receives from others of its node, a node over the network, and
            a GPU from host memory; instead of what is assumed.
        llm: name or config.json of the language model's architecture, for a folder that is not there.
        samples: rendered samples shown of each dataset. probe: items of each that are tried.
    """

    device: str = "a100-80gb"
    tflops: float | None = None
    memory_gb: float | None = None
    utilisation: float | None = None
    gpus: int | None = None
    nodes: int = 1
    strategy: str | None = None
    link_gbs: float | None = None
    network_gbs: float | None = None
    host_gbs: float | None = None
    llm: str | None = None
    samples: int = 1
    probe: int = 32


@dataclass
class Plan:
    """What `plan` found. `problems` and `missing` are what would make the run fail; empty lists mean that it can start.

    Attributes:
        source: the YAML. problems, missing, warnings: one line each; missing are files to fetch.
        device, gpus, nodes, sharding, amp, compiled: where and how it computes. links: assumed rates, None where no
            configuration could be bound.
        inventory, resident: the model's tensors; what is always on a GPU. None where the model cannot be built.
        datasets, work, memory: by dataset, of one rank's batch.
        entries, samples, probes: by "datasets.<name>" or "validation.<name>", of those whose files are there.
        throughput: None where nothing trains. variants: other ways to run it, and this one.
    """

    source: str
    device: Device
    gpus: int = 1
    nodes: int = 1
    sharding: Sharding = field(default_factory=Sharding)
    amp: str | None = None
    compiled: str | None = None
    links: Links | None = None
    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    inventory: Inventory | None = None
    resident: Resident | None = None
    datasets: list[PlannedDataset] = field(default_factory=list)
    work: dict[str, dict[str, Work]] = field(default_factory=dict)
    memory: dict[str, StepMemory] = field(default_factory=dict)
    entries: dict[str, int | None] = field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    probes: dict[str, Probe] = field(default_factory=dict)
    throughput: Throughput | None = None
    variants: list[Variant] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not (self.problems or self.missing)

    @property
    def world(self) -> int:
        return self.gpus * self.nodes

    @property
    def peak(self) -> float | None:
        """Bytes per GPU at the worst moment of the worst dataset, the driver's context included."""
        if self.resident is None:
            return None
        worst = max((m.peak for m in self.memory.values()), default=0.0)
        return self.resident.always + worst + CONTEXT_BYTES
