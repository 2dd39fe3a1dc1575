"""Keys and values of what a conversation has already read, so that a turn costs its own positions only."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from chatbridge.inference.prompt import Position
from chatbridge.models.llm import CausalLM


class PrefixCache:
    """The language model's key-value cache, and what stands at each of its positions.

    Args:
        llm: whose cache it is.
        precision: makes the context in which it computes (autocast).

    Attributes:
        positions: what has been read, in order.
    """

    def __init__(self, llm: CausalLM, precision: Callable[[], AbstractContextManager[Any]] = nullcontext):
        self.llm, self.precision = llm, precision
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.positions: list[Position] = []
        self._cache: DynamicCache | None = None

    def keep(self, positions: Sequence[Position]) -> int:
        """Cut back to the common prefix with `positions`, their last one excepted; returns its length.

        The last one is read again in any case: the answer's first token is predicted there.
        """
        common = common_prefix(self.positions, positions[:-1])
        surplus = len(self.positions) - common
        # Layers with a window, or with a state instead of keys, have forgotten what a cut would have to bring back.
        if surplus and not all(type(layer) is DynamicLayer for layer in self._cache.layers):
            self.reset()
            return 0
        if surplus:
            self._cache.crop(-surplus)
            del self.positions[common:]
        return common

    def read(
        self, positions: Sequence[Position], ids_BL: Tensor | None = None, embeds_BLD: Tensor | None = None
    ) -> Tensor:
        """Read further positions, given by ids or by embeddings. Returns logits [1, V] of what comes next."""
        cache = self._cache if self._cache is not None else self.llm.new_cache()
        try:
            with self.precision():
                logits = self.llm.step(cache, ids_BL, embeds_BLD)
        except BaseException:
            self.reset()  # interrupted between two layers, the cache holds neither the old nor the new
            raise
        self._cache = cache
        self.positions += positions
        return logits

    def copy_for_beams(self, beams: int) -> DynamicCache:
        """A copy for so many beams."""
        cache = copy.deepcopy(self._cache) if self._cache is not None else self.llm.new_cache()
        cache.batch_repeat_interleave(beams)
        return cache


def common_prefix(one: Sequence[Position], other: Sequence[Position]) -> int:
    """How many positions at the beginning are the same."""
    for number, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return number
    return min(len(one), len(other))
