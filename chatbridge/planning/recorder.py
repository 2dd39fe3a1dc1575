"""What a step takes while it runs: operations, and bytes alive; of many equal layers only a few have to run."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
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

NEXT_LAYER = "next layer"
"""The moment at which its last layer begins, when fsdp has most layers in hand."""

OUTSIDE = "model"
"""The component of what runs in none."""

DEPTH = 3
"""Layers that are run of a stack of equal ones. The first may have another role; the second is what one more costs."""

Operations = Counter[tuple[str, bool, bool]]
"""(component, whether backward, whether in half precision) -> operations."""


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return 2 * prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _attention_backward(_: Tensor, q: Tensor, k: Tensor, v: Tensor, *__: Any, **___: Any) -> int:
    """The scores anew, and the four products of which they are made the other way."""
    return 2 * prod(q.shape[:-1]) * k.shape[-2] * (3 * q.shape[-1] + 2 * v.shape[-1])


FORMULAS = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""PyTorch's own count of operations, and the one kernel that it lacks, as it counts the others of its kind."""


@dataclass(eq=False)
class Stack:
    """Equal frozen layers of which only the first few are run.

    Attributes:
        blocks: those. left_out: how many are not run. kept: bytes that one layer leaves for the backward pass.
        flops: of one layer.
    """

    blocks: nn.Module
    left_out: int
    kept: int = 0
    flops: Operations = field(default_factory=Counter)


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
    _, first, *others = map(_description, blocks)
    return all(other == first for other in others)


def _description(block: nn.Module) -> list[Any]:
    """Classes, settings, shapes and types of all that is in a layer; not its number."""
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
        stacks: what `shorten` made of the model; the cost of one layer of each is entered there.
        layers: of the language model, at which phases begin and end.

    Attributes:
        now: bytes alive. peaks: phase -> the most there were. flops: of what ran.
    """

    def __init__(
        self, model: nn.Module, component: Callable[[str], str] = str, stacks: Iterable[Stack] = (),
        layers: list[nn.Module] | None = None, known: Iterable[Tensor] | None = None,
    ):  # fmt: skip
        super().__init__()
        self.now, self.phase, self.peaks = 0, ENCODE, {ENCODE: 0}
        self.flops: Operations = Counter()
        self.stacks, self.layers = stacks, layers or []
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
            first, second, third = stack.blocks[:DEPTH]
            meter = _LayerMeter(self, stack)
            self._hook(second.register_forward_pre_hook, meter.begin_forward)
            self._hook(third.register_forward_pre_hook, meter.end_forward)
            self._hook(second.register_forward_hook, meter.begin_backward)
            self._hook(first.register_forward_hook, meter.end_backward)
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
            self.peaks[NEXT_LAYER] = self.now

    def _layers_ended(self, _: nn.Module, __: Any, out: Any) -> None:
        if not in_backward():
            self._enter_phase(LOSS)
            on_gradient(out, lambda: self._enter_phase(BACKWARD))


class _LayerMeter:
    """Measures one layer of a stack: from the beginning of the second to that of the third, and the same way back."""

    def __init__(self, recorder: Recorder, stack: Stack):
        self.recorder, self.stack = recorder, stack
        stack.kept, stack.flops = 0, Counter()

    def begin_forward(self, *_: Any) -> None:
        if not in_backward():
            self.bytes, self.flops = self.recorder.now, self.recorder.flops.copy()

    def end_forward(self, *_: Any) -> None:
        if not in_backward():
            self.stack.kept += self.recorder.now - self.bytes
            self._add_flops()

    def begin_backward(self, _: nn.Module, __: Any, out: Any) -> None:
        if not in_backward():
            on_gradient(out, lambda: setattr(self, "flops", self.recorder.flops.copy()))

    def end_backward(self, _: nn.Module, __: Any, out: Any) -> None:
        if not in_backward():
            on_gradient(out, self._add_flops)

    def _add_flops(self) -> None:
        self.stack.flops.update(self.recorder.flops - self.flops)


def in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def on_gradient(values: Any, then: Callable[[], None]) -> None:
    """Call `then` when the gradient of the first tensor that gets one is there."""
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            leaf.register_hook(lambda _: then())
            return
