"""Steps of the real model on tensors without content: forward, backward and update, what they take and what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chatbridge.common.batch import IGNORE, TEXT, MultimodalBatch
from chatbridge.models.language_model_checks import PACKING, READING
from chatbridge.models.simulation import GpuDropout, as_fake
from chatbridge.planning.batch_shapes import BatchShape
from chatbridge.planning.parameters import component_of
from chatbridge.planning.recorder import BRIDGES, ENCODE, Operations, Recorder, shorten
from chatbridge.runners.strategy import blocks_of

AMP_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

AT_ONCE = 32
"""As many batches are run as one where one has a fraction of a sample or medium, as batches have on average."""


@dataclass(frozen=True)
class Work:
    """Operations of one component in one rank's batch; `single` are those of both passes in single precision."""

    forward: float
    backward: float
    single: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward


@dataclass(frozen=True)
class Step:
    """What one rank's batch takes, on top of what is always there.

    Attributes:
        peaks: phase (`chatbridge.planning.recorder`) -> most bytes.
        kept: bytes that the forward pass leaves, the batch included; left: that the backward pass leaves.
    """

    peaks: dict[str, float]
    kept: float
    left: float
    flops: Operations


@dataclass(frozen=True)
class Update:
    """What the optimizers take: bytes of their state, bytes while they work, operations."""

    state: float = 0.0
    temporary: float = 0.0
    flops: float = 0.0


class Simulator:
    """Simulates steps of a model, each shape of a batch once.

    Args:
        model: on the meta device; it is changed. amp: mixed precision, "bf16", "fp16", or None.
        world: processes; with more than one gradients go to the reducer's buckets as soon as they are there.
        short: run few layers of many equal ones.
    """

    def __init__(self, model: nn.Module, amp: str | None = None, world: int = 1, short: bool = True):
        self.model, self.amp = model.train(), amp
        model.every_branch = world > 1
        llm = getattr(model, "llm", None)
        if hasattr(llm, "try_out"):
            llm.try_out(READING, PACKING)  # here, where there is nothing to try
        self._stacks = shorten(model) if short else []
        self._layers = [] if llm is None else blocks_of(llm)
        self._mode, self._counterparts = as_fake(model)
        for parameter in model.parameters() if world > 1 else ():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        self._steps: dict[BatchShape, Step] = {}

    def step(self, shape: BatchShape) -> Step:
        """One batch, forward and backward."""
        if shape not in self._steps:
            self._steps[shape] = self._run(shape)
        return self._steps[shape]

    def work(self, shape: BatchShape) -> dict[str, Work]:
        """Component -> operations of one rank's batch, whose numbers may be averages."""
        numbers = (shape.samples, shape.rows or 0, *(media.count for media in shape.media.values()))
        times = 1 if all(float(number).is_integer() for number in numbers) else AT_ONCE
        flops = self.step(shape if times == 1 else shape.repeated(times)).flops
        work = {}
        for part in dict.fromkeys(part for part, *_ in flops):
            there, back = (sum(flops[part, way, half] for half in (False, True)) / times for way in (False, True))
            work[part] = Work(there, back, (flops[part, False, False] + flops[part, True, False]) / times)
        return work

    def update(self, optimizers: Sequence[torch.optim.Optimizer]) -> Update:
        """A step of optimizers that were made for the model, which afterwards have its parameters without content."""
        with self._mode, Recorder(self.model) as seen:
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["params"] = [self._counterparts[parameter] for parameter in group["params"]]
                if group.get("foreach", True) is None:
                    group["foreach"] = True  # as on a GPU
                for parameter in group["params"]:
                    parameter.grad = torch.empty_like(parameter)
            for optimizer in optimizers:  # makes the state
                optimizer.step()
            before, done = seen.now, seen.flops.total()
            seen.peaks[ENCODE] = before
            for optimizer in optimizers:
                optimizer.step()
        self.model.zero_grad()
        states = (value for optimizer in optimizers for state in optimizer.state.values() for value in state.values())
        kept = sum(value.nbytes for value in states if isinstance(value, Tensor) and value.dim())
        return Update(kept, seen.peak - before, seen.flops.total() - done)

    def _run(self, shape: BatchShape) -> Step:
        dtype = AMP_DTYPES.get(self.amp)
        with self._mode:  # before anything is counted: an encoder may have to be run to know
            rows = rows_of(self.model, shape)
        with self._mode, GpuDropout(), Recorder(self.model, component_of, self._stacks, self._layers) as seen:
            batch = blank_batch(shape, rows)
            with torch.autocast("cpu", dtype) if dtype else nullcontext():
                loss = self.model(batch).loss_sum
            kept = seen.now
            if loss.requires_grad:
                loss.backward()
            left = seen.now
        self.model.zero_grad()
        layers, language, others, flops = set(self._layers), 0, 0, seen.flops.copy()
        for stack in self._stacks:
            more = stack.kept * stack.left_out
            language, others = (language + more, others) if stack.blocks[0] in layers else (language, others + more)
            flops.update({key: stack.left_out * number for key, number in stack.flops.items()})
        peaks = {p: n + others + language * (p not in (ENCODE, BRIDGES)) for p, n in seen.peaks.items()}
        return Step(peaks, kept + language + others, left, flops)


def rows_of(model: nn.Module, shape: BatchShape) -> dict[str, int]:
    """Modality -> the rows that each of the batch's media becomes."""
    return {m: model.rows[m]((media.steps, *media.step_shape)) for m, media in shape.media.items()}


def blank_batch(shape: BatchShape, rows: Mapping[str, int]) -> MultimodalBatch:
    """A batch of that shape without content: in each sample BOS, media, text, whose last positions are supervised.

    Args:
        rows: see `rows_of`.
    """
    samples, length = max(1, round(shape.samples)), max(2, round(shape.length))
    lines = samples if shape.rows is None else max(1, min(samples, round(shape.rows)))
    each = -(-samples // lines)
    width = length // each
    labels, slots, owners = ([[fill] * length for _ in range(lines)] for fill in (IGNORE, TEXT, -1))
    mask = [[1] * length for _ in range(lines)]
    spans = [(i // each, i % each * width, i % each * width + width) for i in range(samples)]
    if lines == samples > 1:
        mask[0][-1] = 0  # samples differ in length, so that attention needs a mask
        spans[0] = (0, 0, width - 1)
    used, media = [1] * samples, {}
    for modality, one in sorted(shape.media.items()):
        placed, size = 0, rows[modality]
        for number in range(round(one.count)):
            free = (i % samples for i in range(number, number + samples))
            sample = next((i for i in free if used[i] + size < width), None)
            if sample is not None:
                line, start, _ = spans[sample]
                slots[line][start + used[sample] : start + used[sample] + size] = [len(media)] * size
                used[sample] += size
                placed += 1
        if placed:
            media[modality] = torch.zeros(placed, one.steps, *one.step_shape)
    share, over = divmod(round(shape.supervised), samples)
    for number, (line, start, end) in enumerate(spans):
        count = max(0, min(share + (number < over), end - start - used[number]))
        labels[line][end - count : end] = [0] * count
        owners[line][start:end] = [number] * (end - start)
    mask_BL, labels_BL, slots_BL, owners_BL = (torch.tensor(rows) for rows in (mask, labels, slots, owners))
    names, packed = [str(i) for i in range(samples)], owners_BL if lines < samples else None
    return MultimodalBatch(names, torch.zeros_like(mask_BL), mask_BL, labels_BL, slots_BL, media, samples_BL=packed)
