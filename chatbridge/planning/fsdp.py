"""What ``run.strategy: fsdp`` makes of the frozen language model: groups of tensors, kept in pieces, gathered together.

Follows `chatbridge.runners.strategy` and FSDP2 of PyTorch 2.11: every tensor is cut along its first dimension, each
process keeps as many rows as the first one does (the last pieces are padded), and a group is gathered into one buffer
from which its tensors are copied. The next group's buffer is filled while the present one computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor, nn

from chatbridge.planning.placement import Placement
from chatbridge.planning.recorder import BACKWARD, ENCODE, FORWARD, LOSS, NEXT_LAYER
from chatbridge.runners.strategy import blocks_of


@dataclass(frozen=True)
class LanguageModelBytes:
    """A language model's bytes in one placement.

    Attributes:
        kept: on a GPU throughout. gathered: phase of the step -> gathered there at most, padding included.
        moved: put together by a process for one batch, its own pieces included.
        pinned: a process' locked host memory. building: a node's host memory for the copy that is cut into pieces.
    """

    kept: int
    gathered: dict[str, int] = field(default_factory=dict)
    moved: int = 0
    pinned: int = 0
    building: int = 0


class ShardGroups:
    """The groups that `chatbridge.runners.strategy` makes of a language model, whose shapes alone are read.

    Args:
        llm: None where the model has none.
    """

    def __init__(self, llm: nn.Module | None):
        self._grouped: set[int] = set()
        self.whole = 0  # bytes that are not cut: a table that serves at both ends
        blocks, tables = [] if llm is None else blocks_of(llm), [None, None]
        if llm is not None:
            tables = [llm.model.get_input_embeddings(), llm.model.get_output_embeddings()]
            if tables[1] is not None and tables[0].weight is tables[1].weight:
                self.whole = tables[0].weight.nbytes
                self._grouped.add(id(tables[0].weight))
        self.blocks = [self._group(block.parameters()) for block in blocks]
        self.embeddings, self.head = (self._group(() if table is None else table.parameters()) for table in tables)
        self.rest = self._group(llm.parameters() if llm is not None else ())
        self.total = sum(p.nbytes for p in llm.parameters()) if llm is not None else 0

    def _group(self, parameters: Iterable[Tensor]) -> list[tuple[int, int]]:
        """(rows, bytes of a row) of every tensor that is in no group yet."""
        new = [p for p in parameters if id(p) not in self._grouped]
        self._grouped.update(map(id, new))
        return [(len(p), p.nbytes // len(p)) for p in new if p.dim()]

    def placed(self, where: Placement) -> LanguageModelBytes:
        """Bytes of the language model there."""
        if not where.sharded:
            return LanguageModelBytes(self.total)
        world = where.world
        groups = [self.embeddings, *self.blocks, self.head, self.rest]
        pieces = [math.ceil(rows / world) * size for group in groups for rows, size in group]

        def gathered(group: list[tuple[int, int]]) -> int:
            return world * sum(math.ceil(rows / world) * size for rows, size in group)

        def present(group: list[tuple[int, int]], *buffers: list[tuple[int, int]]) -> int:
            """A group's tensors, buffers, and with offloading the pieces on their way to the first of these. A single
            process has no buffers; it copies a group when its turn has come."""
            arriving = gathered(buffers[0]) // world if where.offload else 0
            return gathered(group) + arriving + (sum(map(gathered, buffers)) if world > 1 else 0)

        layer = max((present(block, block) for block in self.blocks), default=0)
        # Coming to a layer, or to the head: the buffer of the one before is still there.
        coming = [present(block, block, before) for before, block in pairwise(self.blocks)]
        coming.append(present(self.head, self.head, *self.blocks[-1:]))
        # The backward pass goes through the head: its buffer as it comes, then the last layer's.
        head = max(present(self.head, buffer) for buffer in (self.head, *self.blocks[-1:]))
        embedding = present(self.embeddings, self.embeddings)
        present_in = {ENCODE: embedding, FORWARD: layer, NEXT_LAYER: max(coming), LOSS: head, BACKWARD: layer}
        # Layers and head are needed both ways. Checkpointed layers are computed anew while they are there for the
        # backward pass; only the first one's prefetching finds a wrong target then, the embeddings.
        again = int(where.checkpointing)
        moved = 2 * sum(gathered(group) for group in (*self.blocks, self.head))
        moved += (1 + again) * gathered(self.embeddings) + (3 + again) * gathered(self.rest)
        # PyTorch's allocator of pinned memory rounds each tensor up to a power of two.
        pinned = sum(1 << (piece - 1).bit_length() for piece in pieces if piece) if where.offload else 0
        kept = self.whole + (0 if where.offload else sum(pieces))
        return LanguageModelBytes(kept, present_in, moved, pinned, self.total)
