"""What a model consists of, to the parameter and the byte, counted on the meta device."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from chatbridge.common.registry import MODELS
from chatbridge.models.chatbridge import ChatBridgeConfig
from chatbridge.models.llm import CausalLMConfig
from chatbridge.planning.architectures import find_architecture, language_model_of


@dataclass(frozen=True)
class Tensors:
    """Parameters (or buffers) of one component that have one type and one fate.

    Attributes:
        component: the part of the model, by the beginning of its tensors' names.
        dtype: for instance "float16". trainable: whether the optimiser moves them.
        tensors, numbers, bytes: how many tensors, numbers in them, and bytes they take.
    """

    component: str
    dtype: str
    trainable: bool
    tensors: int
    numbers: int
    bytes: int


@dataclass(frozen=True)
class Inventory:
    """The model's tensors, a shared one once, under the first name that it has.

    Attributes:
        parts: parameters by component, type and fate. buffers: the same of buffers, those not saved included.
        trainable: (name, shape) of every tensor that trains, in the optimiser's order.
        source: where the language model's architecture was found; "" where the model names none.
    """

    parts: list[Tensors]
    buffers: list[Tensors]
    trainable: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
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

    def folded(self) -> list[tuple[str, tuple[int, ...], int]]:
        """The trainable list with layer numbers folded: (pattern, shape, how many), nothing left out."""
        rows: dict[tuple[str, tuple[int, ...]], list[int]] = {}
        for name, shape in self.trainable:
            number = re.search(r"(?<=\.)\d+(?=\.)", name)
            pattern = name if number is None else f"{name[: number.start()]}{{}}{name[number.end() :]}"
            rows.setdefault((pattern, shape), []).append(-1 if number is None else int(number.group()))
        return [(pattern.replace("{}", _ranges(n)), shape, len(n)) for (pattern, shape), n in rows.items()]


def meta_model(config: ChatBridgeConfig, named: str | None = None, device: str = "meta") -> tuple[nn.Module, str]:
    """The model of a configuration on the meta device, and where its language model's architecture comes from.

    Args:
        config: the ``model:`` section. named: see `find_architecture`.
        device: another than "meta" gives random weights where the configuration names no files.

    Raises:
        ValueError: an unknown architecture, or parts that do not go together.
    """
    if not (isinstance(config, ChatBridgeConfig) and type(config.llm) is CausalLMConfig):
        with torch.device(device):  # somebody's own model or language model: it must know how to be built there
            return MODELS.build(config), ""
    architecture = find_architecture(config.llm, named)
    llm = language_model_of(config.llm, architecture, device)
    with torch.device(device):
        return MODELS.build(config, llm=llm), architecture.source


def inventory(model: nn.Module, source: str = "") -> Inventory:
    """Count a model's tensors, on whatever device they are."""
    trainable = [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    return Inventory(_sum(model.named_parameters()), _sum(model.named_buffers()), trainable, source)


def component_of(name: str) -> str:
    """The component that a tensor or module belongs to: "llm", "bridges.vision.encoder"."""
    parts = name.split(".")
    return ".".join(parts[:3]) if parts[0] == "bridges" else parts[0]


def _sum(named: Iterable[tuple[str, torch.Tensor]]) -> list[Tensors]:
    totals: dict[tuple[str, str, bool], list[int]] = {}
    for name, tensor in named:
        place = (component_of(name), str(tensor.dtype).removeprefix("torch."), tensor.requires_grad)
        total = totals.setdefault(place, [0, 0, 0])
        for index, more in enumerate((1, tensor.numel(), tensor.nbytes)):
            total[index] += more
    return [Tensors(*place, *total) for place, total in totals.items()]


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 4] as "{0-2,4}"; with one step throughout, [0, 2, 4] as "{0,2,4}"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs) + "}"
