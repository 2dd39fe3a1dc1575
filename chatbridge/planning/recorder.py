"""What a step takes as it runs: operations, and bytes alive; from both what the whole model takes, few layers run."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

ENCODE, FORWARD, LOSS, BACKWARD, BRIDGES = "encode", "forward", "loss", "backward", "bridges"
"""The phases of a step: until the language model's first layer; its layers; what follows them, as far as its way back;
the layers backward; and what is before them."""

OUTSIDE = "model"
"""The component of what runs in none."""

DEPTH = 3
"""Layers that are run of a stack of equal ones. The first may have another role; the second is what one more costs."""


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return 2 * prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _attention_back(_: Tensor, q: Tensor, k: Tensor, v: Tensor, *__: Any, **___: Any) -> int:
    """The scores anew, and the four products of which they are made the other way."""
    return 2 * prod(q.shape[:-1]) * k.shape[-2] * (3 * q.shape[-1] + 2 * v.shape[-1])


FORMULAS = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back,
}
"""PyTorch's own count of operations, and the one kernel that it lacks, as it counts the others of its kind."""


@dataclass(eq=False)
class Stack:
    """Equal frozen layers of which `DEPTH` are run.

    Attributes:
        blocks: those. left_out: how many are not run. kept: bytes that one layer leaves for the backward pass.
        flops: of one layer, as in `Recorder.flops`.
    """

    blocks: nn.Module
    left_out: int
    kept: int = 0
    flops: Counter[tuple[str, bool, bool]] = field(default_factory=Counter)


def shorten(model: nn.Module) -> list[Stack]:
    """Leave `DEPTH` layers, in place, of every list of more that are frozen and, but for the first, equal."""
    stacks = []
    for parent in list(model.modules()):
        for name, blocks in parent.named_children():
            if isinstance(blocks, (nn.ModuleList, nn.Sequential)) and len(blocks) > DEPTH and _equal(blocks):
                parent._modules[name] = blocks[:DEPTH]
                stacks.append(Stack(blocks[:DEPTH], len(blocks) - DEPTH))
    return stacks


def _equal(blocks: nn.Module) -> bool:
    if any(p.requires_grad for p in blocks.parameters()):
        return False
    _, first, *others = blocks
    return all(_description(block) == _description(first) for block in others)


def _description(block: nn.Module) -> list[Any]:
    """Classes, settings, shapes and types of all that is in it; not its number."""
    found: list[Any] = [(name, t.shape, t.dtype) for name, t in (*block.named_parameters(), *block.named_buffers())]
    for module in block.modules():
        settings = {k: v for k, v in vars(module).items() if isinstance(v, (str, int, float)) and k != "layer_idx"}
        found.append((type(module), settings))
    return found


class Recorder(TorchDispatchMode):
    """Follows what is dispatched inside ``with``: every storage from its making to its end, and every operation.

    What a kernel takes and gives back inside itself is not seen, nor what an allocator loses to fragmentation.

    Args:
        model: what runs. known: tensors that are not counted; None for its own.
        component: a tensor's or module's name -> the component that it belongs to.
        stacks: what `shorten` made of the model.
        layers: of the language model, at which phases begin and end.

    Attributes:
        now: bytes alive. peaks: phase -> the most there were.
        last_layer: bytes alive when the last of `layers` begins.
        flops: (component, whether backward, whether in half precision) -> operations.
    """

    def __init__(
        self,
        model: nn.Module,
        component: Callable[[str], str] = str,
        stacks: list[Stack] | None = None,
        layers: list[nn.Module] | None = None,
        known: Iterable[Tensor] | None = None,
    ):
        super().__init__()
        self.now = self.last_layer = 0
        self.phase, self.peaks = ENCODE, {ENCODE: 0}
        self.flops: Counter[tuple[str, bool, bool]] = Counter()
        self.stacks, self.layers = stacks or [], layers or []
        own = [*model.parameters(), *model.buffers()] if known is None else known
        self._known = {tensor.untyped_storage()._cdata for tensor in own}
        self._places = {
            module: component(name)
            for name, module in model.named_modules()
            if name and all(component(f"{name}.{child}") == component(name) for child, _ in module.named_children())
        }  # not of modules that hold several components
        self._forward, self._backward = [OUTSIDE], OUTSIDE
        self._hooks = ExitStack()

    @property
    def peak(self) -> int:
        return max(self.peaks.values())

    def __enter__(self) -> Recorder:
        self._hook(register_module_forward_pre_hook, self._module_begins)
        self._hook(register_module_forward_hook, self._module_ended)
        for stack in self.stacks:
            span = _Span(self, stack)
            for index, end in ((1, False), (2, True)):
                self._hook(stack.blocks[index].register_forward_pre_hook, partial(span.forward, end=end))
            for index, end in ((1, False), (0, True)):
                self._hook(stack.blocks[index].register_forward_hook, partial(span.on_the_way_back, end=end))
        if self.layers:
            self._hook(self.layers[0].register_forward_pre_hook, self._layers_begin, with_kwargs=True)
            self._hook(self.layers[-1].register_forward_pre_hook, self._last_layer_begins)
            self._hook(self.layers[-1].register_forward_hook, self._layers_ended)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # asked for twice as often as all else together
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._storage(leaf)
        formula = FORMULAS.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            half = next(t for t in tree_leaves(args) if isinstance(t, Tensor)).dtype.itemsize == 2
            place = self._backward if in_backward() else self._forward[-1]
            self.flops[place, in_backward(), half] += formula(*args, **kwargs, out_val=out)
        return out

    def add(self, bytes: int) -> None:
        """So many bytes more are alive."""
        self.now += bytes
        self.peaks[self.phase] = max(self.peaks[self.phase], self.now)

    def _hook(self, register: Callable[..., Any], hook: Callable[..., None], **settings: Any) -> None:
        self._hooks.callback(register(hook, **settings).remove)

    def _storage(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.add(size)
            weakref.finalize(storage, self._storage_ends, key, size)

    def _storage_ends(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.add(-size)

    def _enter_phase(self, phase: str) -> None:
        self.phase = phase
        self.peaks[phase] = max(self.peaks.get(phase, 0), self.now)

    def _module_begins(self, module: nn.Module, _: Any) -> None:
        if not in_backward():  # there, checkpointed layers run once more
            around = self._forward[-1]
            self._forward.append(self._places.get(module, around) if around == OUTSIDE else around)

    def _module_ended(self, module: nn.Module, _: Any, out: Any) -> None:
        if not in_backward():
            place = self._forward.pop()
            if place != self._forward[-1]:
                on_gradient(out, lambda: setattr(self, "_backward", place))

    def _layers_begin(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        if not in_backward():
            self._enter_phase(FORWARD)
            on_gradient((args, kwargs), lambda: self._enter_phase(BRIDGES))

    def _last_layer_begins(self, *_: Any) -> None:
        if not in_backward():
            self.last_layer = self.now

    def _layers_ended(self, _: nn.Module, __: Any, out: Any) -> None:
        if not in_backward():
            self._enter_phase(LOSS)
            on_gradient(out, lambda: self._enter_phase(BACKWARD))


class _Span:
    """From the beginning of one layer to that of the next, and the same on the way back."""

    def __init__(self, recorder: Recorder, stack: Stack):
        self.recorder, self.stack = recorder, stack

    def forward(self, *_: Any, end: bool) -> None:
        if in_backward():
            return
        if end:
            self.stack.kept += self.recorder.now - self.bytes
        self.bytes = self.recorder.now
        self._count(end)

    def on_the_way_back(self, _: nn.Module, __: Any, out: Any, end: bool) -> None:
        if not in_backward():
            on_gradient(out, lambda: self._count(end))

    def _count(self, end: bool) -> None:
        if end:
            self.stack.flops.update(self.recorder.flops - self.flops)
        self.flops = self.recorder.flops.copy()


def in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def on_gradient(values: Any, then: Callable[[], None]) -> None:
    """Call `then` when the gradient of the first tensor that gets one is there."""
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            leaf.register_hook(lambda _: then())
            return
