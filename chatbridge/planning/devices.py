"""What a GPU can do: peaks and memory from the makers' data sheets, utilisation as an assumption to be measured.

The peaks are those of dense matrices: half precision on tensor cores with fp32 accumulation, single precision on the
ordinary cores, which is what PyTorch uses for fp32 unless TF32 is switched on. GB are 10**9 bytes.
"""

from __future__ import annotations

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
    """

    name: str
    half_tflops: float
    single_tflops: float
    memory_gb: float
    utilisation: float


DEVICES = {
    d.name: d
    for d in (
        Device("a100-40gb", 312, 19.5, 40, 0.40),
        Device("a100-80gb", 312, 19.5, 80, 0.40),
        Device("h100", 989, 67, 80, 0.35),
        Device("h200", 989, 67, 141, 0.35),
    )
}
"""The faster the device, the more of a step's time goes to memory traffic, hence the lower share assumed."""


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
        if value is not None and not value > 0:
            raise ValueError(f"{key} must be above 0, not {value}")
    if utilisation is not None and utilisation > 1:
        raise ValueError(f"utilisation is a share of the peak, 0 to 1, not {utilisation}")
    return replace(DEVICES[name], **{key: value for key, value in given.items() if value is not None})
