"""How fast a run goes: tokens, samples, floating-point operations, and what it waits for."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from chatbridge.common.devices import device_of


class ThroughputMeter:
    """Sums up steps between two lines of the log.

    Floating-point operations are those that PyTorch's own counter sees in one batch of each dataset; its other batches
    are taken to need as many per sample.

    Args:
        device: of this process. half: whether matrices are multiplied in half precision. world: processes.
    """

    def __init__(self, device: torch.device, half: bool, world: int):
        self.device, self.world = device, world
        self.peak: float | None = None
        if device.type == "cuda":
            known = device_of(torch.cuda.get_device_name(device))
            if known is not None:
                self.peak = known.half_tflops if half else known.single_tflops
        self.flops_per_sample: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Begin anew: after a line of the log, and after what is no training (validation, checkpoints)."""
        self.began = time.perf_counter()
        self.tokens = self.samples = self.steps = 0
        self.waited = self.flops = 0.0

    def needs_count(self, dataset: str) -> bool:
        """Whether this dataset's operations are still to be counted."""
        return dataset not in self.flops_per_sample

    def add(self, dataset: str, tokens: int, samples: int, waited: float) -> None:
        """One step: `tokens` and `samples` of all processes, seconds that this one waited for its batch."""
        self.steps += 1
        self.tokens += tokens
        self.samples += samples
        self.waited += waited
        self.flops += self.flops_per_sample.get(dataset, 0.0) * samples / self.world

    def set_count(self, dataset: str, counter: FlopCounterMode, samples: int) -> None:
        """Take over what a counter saw in a batch of `samples` samples."""
        self.flops_per_sample[dataset] = counter.get_total_flops() / max(samples, 1)

    def values(self) -> dict[str, Any]:
        """Numbers for the log, since the last `restart`."""
        seconds = max(time.perf_counter() - self.began, 1e-9)
        steps = max(self.steps, 1)
        found: dict[str, Any] = {
            "tokens_per_second": round(self.tokens / seconds, 3),
            "samples_per_second": round(self.samples / seconds, 3),
            "step_seconds": seconds / steps,
            "data_seconds": self.waited / steps,
            "data_share": self.waited / seconds,
            "memory_gb": round(self.memory_gb(), 3),
        }
        if self.flops:
            found["tflops"] = self.flops / seconds / 1e12
            if self.peak:
                found["peak_share"] = found["tflops"] / self.peak
        return found

    def memory_gb(self) -> float:
        """The most memory held so far, GB: of the GPU by PyTorch's allocator, or of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return held / 1e9 if sys.platform == "darwin" else held * 1024 / 1e9
