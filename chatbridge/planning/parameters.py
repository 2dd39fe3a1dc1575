"""What a model consists of, to the parameter and the byte, counted on any device."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class TensorGroup:
    """Parameters (or buffers) of one component that have one type and are all frozen or all trained.

    Attributes:
        component: the part of the model, by the beginning of its tensors' names.
        tensors, numbers, bytes: how many tensors, numbers in them, and bytes they take.
    """

    component: str
    dtype: str
    trainable: bool
    tensors: int
    numbers: int
    bytes: int


@dataclass(frozen=True)
class ParameterCount:
    """The model's tensors, a shared one once, under the first name that it has.

    Attributes:
        parts, buffers: parameters, and buffers, those not saved included.
        trainable: (name, shape) of every tensor that trains, in the optimizer's order.
        source: where the language model's architecture was found; "" where the model names none.
    """

    parts: list[TensorGroup]
    buffers: list[TensorGroup]
    trainable: list[tuple[str, tuple[int, ...]]]
    source: str = ""

    @property
    def parameters(self) -> int:
        return sum(part.numbers for part in self.parts)

    @property
    def parameter_bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def buffer_bytes(self) -> int:
        return sum(part.bytes for part in self.buffers)

    @property
    def trainable_parameters(self) -> int:
        return sum(part.numbers for part in self.parts if part.trainable)

    @property
    def trainable_bytes(self) -> int:
        return sum(part.bytes for part in self.parts if part.trainable)

    def trainable_by_layer(self) -> Counter[tuple[str, tuple[int, ...]]]:
        """(name with its layer's number as ``*``, shape) -> how many train."""
        return Counter((re.sub(r"(?<=\.)\d+(?=\.)", "*", name, count=1), shape) for name, shape in self.trainable)


def count_parameters(model: nn.Module, source: str = "") -> ParameterCount:
    trainable = [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    return ParameterCount(_groups(model.named_parameters()), _groups(model.named_buffers()), trainable, source)


def component_of(name: str) -> str:
    """The component that a tensor or module belongs to: "llm", "bridges.vision.encoder"."""
    parts = name.split(".")
    return ".".join(parts[:3]) if parts[0] == "bridges" else parts[0]


def _groups(named: Iterable[tuple[str, Tensor]]) -> list[TensorGroup]:
    groups: dict[tuple[str, str, bool], list[Tensor]] = {}
    for name, tensor in named:
        kind = (component_of(name), str(tensor.dtype).removeprefix("torch."), tensor.requires_grad)
        groups.setdefault(kind, []).append(tensor)
    return [
        TensorGroup(*kind, len(tensors), sum(t.numel() for t in tensors), sum(t.nbytes for t in tensors))
        for kind, tensors in groups.items()
    ]
