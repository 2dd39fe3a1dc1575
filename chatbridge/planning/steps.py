"""Steps of the real model on tensors without content: forward, backward and update, what they take and what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from chatbridge.common.batch import IGNORE, TEXT, MultimodalBatch
from chatbridge.models.simulation import GpuDropout, as_fake
from chatbridge.models.trial import PACKING, READING
from chatbridge.planning.batches import BatchShape, MediaBatch
from chatbridge.planning.inventory import component_of
from chatbridge.planning.recorder import BACKWARD, ENCODE, FORWARD, LOSS, Recorder, shorten
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
        peaks: phase (`chatbridge.planning.recorder`) -> most bytes. last_layer: when the language model's last begins.
        kept: bytes that the forward pass leaves, the batch included; left: that the backward pass leaves.
        flops: (component, whether backward, whether in half precision) -> operations.
    """

    peaks: dict[str, float]
    last_layer: float
    kept: float
    left: float
    flops: Counter[tuple[str, bool, bool]]


@dataclass(frozen=True)
class Update:
    """What the optimisers take: bytes of their state, bytes while they work, operations."""

    state: float = 0.0
    temporary: float = 0.0
    flops: float = 0.0


class Simulator:
    """Simulates steps of a model.

    Args:
        model: on the meta device; it is changed. rebuild: another, with gradient checkpointing or without.
        checkpointing: whether `model` has it. amp: mixed precision, "bf16", "fp16", or None.
        world: processes; with more than one gradients go to the reducer's buckets as soon as they are there.
        short: run few layers of many equal ones.
    """

    def __init__(
        self, model: nn.Module, rebuild: Callable[[bool], nn.Module] | None = None, checkpointing: bool = False,
        amp: str | None = None, world: int = 1, short: bool = True,
    ):  # fmt: skip
        self.rebuild, self.checkpointing, self.amp, self.world, self.short = rebuild, checkpointing, amp, world, short
        self._first = self._prepared(model)
        self._models = {checkpointing: self._first}
        self._steps: dict[Any, Step] = {}

    def step(self, shape: BatchShape, checkpointing: bool | None = None, held: bool = False) -> Step:
        """One micro-batch, forward and backward. `held`: others before it have left gradients."""
        wanted = self.checkpointing if checkpointing is None else checkpointing
        if (shape, wanted, held) not in self._steps:
            if wanted not in self._models:
                self._models[wanted] = self._prepared(self.rebuild(wanted))
            self._steps[shape, wanted, held] = self._run(self._models[wanted], shape, held)
        return self._steps[shape, wanted, held]

    def work(self, shape: BatchShape, checkpointing: bool | None = None, held: bool = False) -> dict[str, Work]:
        """Component -> operations of one rank's batch, whose numbers may be averages."""
        numbers = (shape.samples, shape.rows or 0, *(media.count for media in shape.media.values()))
        times = 1 if all(float(number).is_integer() for number in numbers) else AT_ONCE
        flops = self.step(shape if times == 1 else _repeated(shape, times), checkpointing, held).flops

        def total(part: str, backward: bool | None = None, half: bool | None = None) -> float:
            wanted = ((p, b, h) for p, b, h in flops if p == part and backward in (b, None) and half in (h, None))
            return sum(flops[key] for key in wanted) / times

        parts = dict.fromkeys(part for part, *_ in flops)
        return {part: Work(total(part, False), total(part, True), total(part, half=False)) for part in parts}

    def update(self, optimisers: Sequence[torch.optim.Optimizer]) -> Update:
        """A step of optimisers that were made for `model`, which afterwards have its parameters without content."""
        first = self._first
        with first.mode, Recorder(first.model) as seen:
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["params"] = [first.counterparts[parameter] for parameter in group["params"]]
                    if group.get("foreach", True) is None:
                        group["foreach"] = True  # as on a GPU
                    for parameter in group["params"]:
                        parameter.grad = torch.empty_like(parameter)
            _take(optimisers)  # makes the state
            before, done = seen.now, seen.flops.total()
            seen.peaks[ENCODE] = before
            _take(optimisers)
        _forget_gradients(first.model)
        states = (value for optimiser in optimisers for state in optimiser.state.values() for value in state.values())
        kept = sum(value.nbytes for value in states if isinstance(value, Tensor) and value.dim())
        return Update(kept, seen.peak - before, seen.flops.total() - done)

    def _prepared(self, model: nn.Module) -> _Prepared:
        model.train()
        model.every_branch = self.world > 1
        llm = getattr(model, "llm", None)
        if hasattr(llm, "try_out"):
            llm.try_out(READING, PACKING)  # here, where there is nothing to try
        stacks = shorten(model) if self.short else []
        mode, counterparts = as_fake(model)
        if self.world > 1:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        return _Prepared(model, mode, counterparts, stacks, [] if llm is None else blocks_of(llm))

    def _run(self, prepared: _Prepared, shape: BatchShape, held: bool) -> Step:
        model, layers = prepared.model, prepared.layers
        with prepared.mode:  # before anything is counted: an encoder may have to be run to know
            rows = rows_of(model, shape)
        stacks = [replace(stack, kept=0, flops=Counter()) for stack in prepared.stacks]
        dtype = AMP_DTYPES.get(self.amp)
        with prepared.mode, GpuDropout(), Recorder(model, component_of, stacks, layers) as seen:
            batch = made_up(shape, rows)
            for parameter in model.parameters():
                if held and parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
            with torch.autocast("cpu", dtype) if dtype else nullcontext():
                loss = model(batch).loss_sum
            kept = seen.now
            if loss.requires_grad:
                loss.backward()
            left = seen.now
        _forget_gradients(model)
        own = {id(block) for block in layers}
        language = sum(s.kept * s.left_out for s in stacks if id(s.blocks[0]) in own)
        others = sum(s.kept * s.left_out for s in stacks) - language
        peaks = {p: n + others + language * (p in (FORWARD, LOSS, BACKWARD)) for p, n in seen.peaks.items()}
        flops = seen.flops.copy()
        for stack in stacks:
            flops.update({key: stack.left_out * number for key, number in stack.flops.items()})
        more = language + others
        return Step(peaks, seen.last_layer + more, kept + more, left, flops)


@dataclass(frozen=True)
class _Prepared:
    model: nn.Module
    mode: Any
    counterparts: Mapping[nn.Parameter, nn.Parameter]
    stacks: list
    layers: list[nn.Module]


def _take(optimisers: Sequence[torch.optim.Optimizer]) -> None:
    for optimiser in optimisers:
        optimiser.step()


def _forget_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None


def _repeated(shape: BatchShape, times: int) -> BatchShape:
    media = {m: MediaBatch(one.count * times, one.steps, one.step_shape) for m, one in shape.media.items()}
    rows = None if shape.rows is None else shape.rows * times
    return BatchShape(shape.samples * times, shape.length, shape.supervised * times, media, rows)


def rows_of(model: nn.Module, shape: BatchShape) -> dict[str, int]:
    """Modality -> the rows that each of the batch's media becomes."""
    return {m: model.rows[m]((media.steps, *media.step_shape)) for m, media in shape.media.items()}


def made_up(shape: BatchShape, rows: Mapping[str, int]) -> MultimodalBatch:
    """A batch of that shape, in whole numbers: in each sample BOS, media, text, whose last positions are supervised.

    Args:
        rows: as `rows_of` tells.
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
