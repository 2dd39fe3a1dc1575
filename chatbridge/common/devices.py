"""What a GPU can do: peaks and memory from the makers' data sheets, utilisation as an assumption to be measured.

The peaks are those of dense matrices: half precision on tensor cores with fp32 accumulation, single precision on the
ordinary cores, which is what PyTorch uses for fp32 unless TF32 is switched on. GB are 10**9 bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from chatbridge.common.registry import nearest


@dataclass(frozen=True)
class Device:
    """One GPU.

    Attributes:
        name: as in `DEVICES`.
        half_tflops, single_tflops: dense peaks in bf16/fp16 and in fp32, TFLOP/s.
        memory_gb: its memory, GB.
        utilisation: share of the peak that a step reaches, 0 to 1. The table's values are assumptions; measure yours
            with ``benchmarks/calibrate_plan.py``.
        nvlink: whether the GPUs of a node have links of their own; otherwise they share PCIe with the host.
    """

    name: str
    half_tflops: float
    single_tflops: float
    memory_gb: float
    utilisation: float
    nvlink: bool = False


DEVICES = {
    d.name: d
    for d in (
        Device("a100-40gb", 312, 19.5, 40, 0.40, nvlink=True),
        Device("a100-80gb", 312, 19.5, 80, 0.40, nvlink=True),
        Device("h100", 989, 67, 80, 0.35, nvlink=True),
        Device("h200", 989, 67, 141, 0.35, nvlink=True),
        Device("a10", 125, 31.2, 24, 0.40),
        Device("l4", 121, 30.3, 24, 0.40),
        Device("rtx4090", 165.2, 82.6, 24, 0.40),
    )
}
"""The faster the device, the more of a step's time goes to memory traffic, hence the lower share assumed."""

CUDA_NAMES = {
    "A100-SXM4-40GB": "a100-40gb",
    "A100-PCIE-40GB": "a100-40gb",
    "A100-SXM4-80GB": "a100-80gb",
    "A100-SXM-80GB": "a100-80gb",
    "A100 80GB PCIe": "a100-80gb",
    "H100 80GB HBM3": "h100",
    "H200": "h200",
    "A10": "a10",
    "L4": "l4",
    "GeForce RTX 4090": "rtx4090",
}
"""What drivers call them. Whole names only: an H100 PCIe, an H20, a part of a GPU (MIG) have other peaks."""


def device_of(cuda_name: str) -> Device | None:
    """The table's entry for a name by ``torch.cuda.get_device_name()``; None for one that the table does not hold."""
    name = CUDA_NAMES.get(cuda_name.strip().removeprefix("NVIDIA "))
    return None if name is None else DEVICES[name]


def device(
    name: str, tflops: float | None = None, memory_gb: float | None = None, utilisation: float | None = None
) -> Device:
    """The device of that name, with any of its numbers replaced.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """
    if name not in DEVICES:
        raise ValueError(f"no device is called '{name}'; {nearest(name, list(DEVICES))}")
    given = {"half_tflops": tflops, "memory_gb": memory_gb, "utilisation": utilisation}
    for key, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{key} must be above 0 and finite, not {value}")
    if utilisation is not None and utilisation > 1:
        raise ValueError(f"utilisation is a share of the peak, 0 to 1, not {utilisation}")
    return replace(DEVICES[name], **{key: value for key, value in given.items() if value is not None})
