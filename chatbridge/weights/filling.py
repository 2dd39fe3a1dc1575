"""Putting a file's tensors into a model, without a second copy of either in memory.

Modules that come from files are built with `empty_weights`, their parameters on the meta device, and filled here:
each tensor is mapped, checked, converted straight onto the device where it will live, and let go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from chatbridge.weights.coverage import NameMapping, Target
from chatbridge.weights.files import WeightsError, WeightSource

_device: ContextVar[torch.device | None] = ContextVar("chatbridge_filling_device", default=None)


@contextmanager
def filling_on(device: torch.device | str | None) -> Iterator[None]:
    """Weights that are read inside this block go straight to `device` (None: the CPU), never whole through the host."""
    token = _device.set(torch.device(device) if device is not None else None)
    try:
        yield
    finally:
        _device.reset(token)


def on_meta() -> bool:
    """Whether the caller builds on the meta device, where nothing is to be read."""
    return torch.get_default_device().type == "meta"


def empty_weights(wanted: bool = True) -> AbstractContextManager:
    """Modules built inside have parameters without memory (their buffers are real), for `fill` to make."""
    return init_empty_weights(include_buffers=False) if wanted and not on_meta() else nullcontext()


@torch.no_grad()
def fill(
    module: nn.Module, mapping: NameMapping, source: WeightSource, targets: Mapping[str, Target], what: str
) -> None:
    """Put every named tensor of `source` into its target; all of them, or none.

    Parameters on the meta device are made on the device of `filling_on`; others are overwritten in place.

    Args:
        module: what the targets belong to.
        what: the file, for messages.

    Raises:
        WeightsError: when a tensor holds a value that is not finite, or copies that should be equal differ.
    """
    device = _device.get() or torch.device("cpu")
    made: dict[int, Tensor] = {}
    waiting: list[tuple[Tensor, Tensor]] = []
    for name, tensor in checked(mapping, source, what):
        if name in mapping.names:
            target = targets[mapping.names[name]]
            value = target.fitted(tensor)
            for place in target.places:
                if not place.is_meta:
                    waiting.append((place, value))
                elif id(place) not in made:
                    made[id(place)] = torch.empty(place.shape, dtype=place.dtype, device=device).copy_(value)
            del value
        del tensor
    _replace(module, made)
    for place, value in waiting:
        place.copy_(value)


def checked(mapping: NameMapping, source: WeightSource, what: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a mapping names, each after a look at its values; copies are compared when all were seen."""
    wanted = [name for name in source.tensors if name in mapping.names or name in mapping.copies]
    compared = set(mapping.copies) | set(mapping.copies.values())
    copies: dict[str, Tensor] = {}
    for name, tensor in source.stream(wanted):
        check_finite(name, tensor, what)
        if name in compared:
            copies[name] = tensor.clone()
        yield name, tensor
        del tensor
    for name, own in mapping.copies.items():
        if not torch.equal(copies[name], copies[own]):
            raise WeightsError(f"{what}: {name} and {own} differ, though all layers share that table")


def check_finite(name: str, tensor: Tensor, what: str) -> None:
    """Raise WeightsError when a floating-point tensor holds NaN or infinity."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    low, high = torch.aminmax(tensor)  # NaN passes through both
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        count = int((~torch.isfinite(tensor)).sum())
        raise WeightsError(
            f"{what}: tensor '{name}' holds {count} values that are NaN or infinite; nothing was loaded, the file is "
            "damaged or its training diverged"
        )


def _replace(module: nn.Module, made: Mapping[int, Tensor]) -> None:
    """Exchange meta tensors for real ones wherever the module has them; what was shared stays shared."""
    parameters: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, old in part._parameters.items():
            if old is not None and id(old) in made:
                if id(old) not in parameters:
                    parameters[id(old)] = nn.Parameter(made[id(old)], requires_grad=old.requires_grad)
                part._parameters[name] = parameters[id(old)]
        for name, old in part._buffers.items():
            if old is not None and id(old) in made:
                part._buffers[name] = made[id(old)]
