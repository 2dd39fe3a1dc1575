"""Models that run without content: tensors have type, shape and lifetime, only whole numbers are real.

So a model of 28 GB takes no memory and its step no time to speak of, while ids, labels and masks say what goes where as
they always do. `chatbridge.planning` counts what such a step takes; `check_media` sends media through an encoder.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from chatbridge.models.bridge import BridgeConfig, check_frames
from chatbridge.models.row_counts import meta_encoder

aten = torch.ops.aten

INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
"""Operators whose second argument may hold masks."""


class FakeFloats(FakeTensorMode):
    """Tensors of floating-point numbers have no content; those of integers and booleans are real.

    A single number that is asked for (``item``) is 1. All tensors are on the CPU: unlike the meta device it has
    autocast and fused attention.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not given:
            out = super().__torch_dispatch__(func, types, args, kwargs)
            return func(*args, **kwargs) if isinstance(out, Tensor) and not _is_float(out.dtype) else out
        real = [tensor for tensor in given if not isinstance(tensor, FakeTensor)]
        if len(real) == len(given) and not _is_float(kwargs.get("dtype")):
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return torch.ones((), dtype=args[0].dtype).item()
        if func in INDEXING:  # of a mask without content the size of the result is unknown
            args = (args[0], list(_indices(args[1])), *args[2:])
        if real:
            args, kwargs = tree_map_only(Tensor, self._fake, (args, kwargs))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _fake(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self.from_tensor(tensor)


def _is_float(dtype: torch.dtype | None) -> bool:
    return dtype is not None and dtype.is_floating_point


def _indices(given: Iterable[Tensor | None]) -> Iterable[Tensor | None]:
    """Indices with masks as the numbers of their true places."""
    for index in given:
        mask = index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        yield from index.nonzero(as_tuple=True) if mask else (index,)


class GpuDropout(TorchFunctionMode):
    """Dropout keeps what it does on a GPU: a byte for each number, and nothing in attention, whose fused kernel draws
    it again in the backward pass."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs = kwargs | ({"dropout_p": 0.0} if "dropout_p" in kwargs else {})
        elif func is F.dropout:
            return _dropout(*args, **kwargs)
        return func(*args, **kwargs)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0:
        return x
    kept = torch.empty_like(x, dtype=torch.bool)
    return torch.where(kept, x, 0.0)


def as_fake(model: nn.Module) -> tuple[FakeFloats, dict[nn.Parameter, nn.Parameter]]:
    """Turn a model on the meta device, in place, into one without content.

    Returns:
        The mode to run it in, and what every parameter has become.
    """
    # PyTorch's engine counts devices once, at the first backward pass. Inside the mode it would count a GPU that is not
    # there, start a thread for it, and no process forked later could train.
    torch.zeros((), requires_grad=True).backward()
    mode, made = FakeFloats(), {}
    with mode:
        for module in model.modules():
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    if tensor not in made:
                        empty = torch.zeros(tensor.shape, dtype=tensor.dtype)
                        made[tensor] = nn.Parameter(empty, requires_grad=tensor.requires_grad)
                    module._parameters[name] = made[tensor]
            for name, tensor in module._buffers.items():
                if tensor is not None:
                    module._buffers[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return mode, made


def check_media(name: str, bridge: BridgeConfig, source: str, shape: tuple[int, ...]) -> None:
    """Send a medium without content through a bridge's encoder. One that needs content is not judged.

    Args:
        name: the bridge's; source: the key of the processor that gives the media, for messages.
        shape: of a medium, [T, ...].

    Raises:
        ValueError: when the encoder cannot take what the processor gives, or gives what a bridge cannot take.
    """
    check_frames(bridge, shape[0])
    where = f"model.bridges.{name}.encoder"
    media = f"what {source} gives, {list(shape[1:])} a frame or clip"
    try:
        encoder = meta_encoder(bridge.encoder)
        with as_fake(encoder)[0], torch.no_grad():
            tokens = encoder(torch.zeros(1, *shape[1:]))
    except Exception as error:  # it may be the user's own code, and PyTorch's checks raise many classes
        if needs_content(error):
            return
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{where} cannot take {media}: {reason}") from error
    if tokens.dim() != 3 or tokens.shape[0] != 1 or tokens.shape[1] < 1 or tokens.shape[2] != encoder.width:
        raise ValueError(
            f"{where} makes {list(tokens.shape)} of {media}; a bridge takes [1, tokens, {encoder.width}], one token at "
            "least and its width last"
        )


WITHOUT_CONTENT = (
    NotImplementedError, DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException,
)  # fmt: skip


def needs_content(error: Exception) -> bool:
    """Whether something failed only because its tensors have no content."""
    return isinstance(error, WITHOUT_CONTENT) or "meta tensor" in str(error).lower()
