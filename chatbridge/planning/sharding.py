"""What ``run.strategy: fsdp`` makes of the frozen language model: groups of tensors, kept in pieces, gathered together.

Follows `chatbridge.runners.strategy` and FSDP2 of PyTorch 2.11: every tensor is cut along its first dimension, each
process keeps as many rows as the first one does (the last pieces are padded), and a group is gathered into one buffer
from which its tensors are copied. The next group's buffer is filled while the present one computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from chatbridge.runners.strategy import blocks_of

STRATEGIES = ("ddp", "fsdp")


@dataclass(frozen=True)
class Sharding:
    """How a run is spread over processes.

    Attributes:
        strategy: "ddp" keeps everything on every GPU; "fsdp" keeps 1/world of the language model there and gathers its
            groups as they are needed. What trains is whole on every GPU either way, and so are the encoders.
        world: processes. accumulate: micro-batches per step. nodes: machines.
        offload: fsdp's pieces are kept in pinned host memory.
    """

    strategy: str = "ddp"
    world: int = 1
    accumulate: int = 1
    nodes: int = 1
    offload: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"run.strategy: '{self.strategy}' is not one of {', '.join(STRATEGIES)}")
        if self.world < 1:
            raise ValueError(f"at least one GPU is needed, not {self.world}")
        if self.offload and not self.sharded:
            raise ValueError("run.offload_frozen: layers come to the GPU one by one under strategy fsdp only")

    @property
    def sharded(self) -> bool:
        return self.strategy == "fsdp"

    @property
    def label(self) -> str:
        return self.strategy + (", offload_frozen" if self.offload else "")


@dataclass(frozen=True)
class ShardGroup:
    """Tensors that are gathered together, as (shape, bytes of a number)."""

    tensors: tuple[tuple[tuple[int, ...], int], ...] = ()

    def pieces(self, world: int) -> list[int]:
        """Bytes of every tensor's piece on one process."""
        return [math.ceil(shape[0] / world) * math.prod(shape[1:]) * size for shape, size in self.tensors]

    def kept(self, world: int) -> int:
        return sum(self.pieces(world))

    def gathered(self, world: int) -> int:
        """With its padding."""
        return world * self.kept(world)

    def pinned(self, world: int) -> int:
        """Host memory of the pieces: PyTorch's allocator of pinned memory rounds each up to a power of two."""
        return sum(1 << (piece - 1).bit_length() for piece in self.pieces(world) if piece)


@dataclass(frozen=True)
class LanguageShards:
    """The groups of a language model.

    Attributes:
        embeddings, head: the tables at both ends. blocks: its layers. rest: what is left, a norm as a rule.
        whole: bytes that are not cut: a table that serves at both ends. total: bytes of the model.
        checkpointing: whether its layers are computed anew in the backward pass.
    """

    embeddings: ShardGroup
    blocks: tuple[ShardGroup, ...]
    head: ShardGroup
    rest: ShardGroup
    whole: int
    total: int
    checkpointing: bool

    @property
    def groups(self) -> tuple[ShardGroup, ...]:
        return (self.embeddings, *self.blocks, self.head, self.rest)

    def kept(self, world: int) -> int:
        """Bytes of one process' pieces."""
        return sum(group.kept(world) for group in self.groups)

    def pinned(self, world: int) -> int:
        """Host memory that one process' pieces take under ``run.offload_frozen``."""
        return sum(group.pinned(world) for group in self.groups)

    def gathered(self, world: int) -> int:
        """Bytes that one process puts together for one batch, forward and backward, its own pieces included.

        Layers and head are needed both ways: after their forward pass they are given up. What gradient checkpointing
        computes anew, it does while its layer is there for the backward pass; only the first layer's prefetching finds
        a wrong target then, the embeddings.
        """
        twice = sum(group.gathered(world) for group in (*self.blocks, self.head))
        again = int(self.checkpointing)
        return 2 * twice + (1 + again) * self.embeddings.gathered(world) + (3 + again) * self.rest.gathered(world)

    def at_embedding(self, sharding: Sharding) -> int:
        """Bytes of gathered parameters on one GPU while tokens are embedded."""
        return _present(sharding, self.embeddings, self.embeddings)

    def at_forward(self, sharding: Sharding) -> int:
        """When the forward pass comes to a layer, and to the head: the buffer of the one before is still there."""
        layer = max((_present(sharding, b, b, a) for a, b in pairwise(self.blocks)), default=0)
        return max(layer, _present(sharding, self.head, self.head, *self.blocks[-1:]))

    def at_loss(self, sharding: Sharding) -> int:
        """While the backward pass goes through the head: its buffer as it comes, then the last layer's."""
        return max(_present(sharding, self.head, coming) for coming in (self.head, *self.blocks[-1:]))

    def at_layer(self, sharding: Sharding) -> int:
        """While it goes through a layer: this one, and the one before it as it comes."""
        return max((_present(sharding, block, block) for block in self.blocks), default=0)


def _present(sharding: Sharding, group: ShardGroup, *buffers: ShardGroup) -> int:
    """Bytes of a group's tensors, of buffers, and with offloading of the pieces on their way to the first of these.

    A single process has no buffers; it copies a group when its turn has come.
    """
    if not sharding.sharded:
        return 0
    world = sharding.world
    waiting = sum(buffer.gathered(world) for buffer in buffers) if world > 1 else 0
    return group.gathered(world) + waiting + (buffers[0].kept(world) if sharding.offload else 0)


def language_shards(llm: nn.Module, checkpointing: bool = False) -> LanguageShards:
    """The groups that `chatbridge.runners.strategy` makes of a language model.

    Args:
        llm: on any device; only shapes and types are read. It has the transformers model as `model`.
    """
    seen: set[int] = set()
    blocks = tuple(_group(block.parameters(), seen) for block in blocks_of(llm))
    tables = [llm.model.get_input_embeddings(), llm.model.get_output_embeddings()]
    whole = 0
    if tables[1] is not None and tables[0].weight is tables[1].weight:
        whole = tables[0].weight.numel() * tables[0].weight.element_size()
        seen.add(id(tables[0].weight))
    embeddings, head = (_group(table.parameters() if table is not None else (), seen) for table in tables)
    rest = _group(llm.parameters(), seen)
    total = sum(p.numel() * p.element_size() for p in llm.parameters())
    return LanguageShards(embeddings, blocks, head, rest, whole, total, checkpointing)


def _group(parameters: Iterable[Tensor], seen: set[int]) -> ShardGroup:
    """The parameters that no group has yet."""
    new = [p for p in parameters if id(p) not in seen]
    seen.update(id(p) for p in new)
    return ShardGroup(tuple((tuple(p.shape), p.element_size()) for p in new))
