"""What a language model is asked for beyond its plain forward pass, compared once with that pass.

Families differ in more than their configurations say: where embeddings and logits are scaled, whether a layer carries
a state past a sample's end, whether a cache is used at all. None of it is looked up; a few positions tell. Shape
letters: `chatbridge.common.batch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

READING, GENERATING, PACKING, STREAMING = "reading", "generating", "packing", "streaming"

FAULTS = {
    READING: "given embeddings in place of ids, or something behind them, it gives other logits; take another model",
    GENERATING: "behind padding on the left it gives other logits; take another model",
    PACKING: "samples that share a row change each other's logits; set model.llm.attention to sdpa or eager or, where "
    "it is that already, do not pack (pack: null)",
    STREAMING: "given a text in pieces, it gives other logits than for the whole; take another model",
}
"""Use -> what is wrong with a model that gives other logits then, and what to do."""

LONG, SHORT = 5, 3
"""Positions of the two samples that are tried."""

Pairs = list[tuple[Tensor, Tensor]]


@torch.no_grad()
def faults(llm: Any, uses: Sequence[str]) -> dict[str, str]:
    """What keeps a `CausalLM` from each of these uses; empty where nothing does.

    The measure is its plain forward pass over ids. A model without weights, or whose logits are not finite, passes.
    """
    if llm.device.type == "meta":
        return dict.fromkeys(uses, "")
    llm, count = _AsWritten(llm), LONG + SHORT
    ids_1L = ((torch.arange(count, device=llm.device) * llm.vocab_size // count + 3) % llm.vocab_size)[None]
    samples = ids_1L.split([LONG, SHORT], dim=1)
    found, plain = {}, []
    with torch.autocast(llm.device.type, enabled=False):
        for use in uses:
            try:
                plain = plain or [_plain(llm, ids_1L) for ids_1L in samples]
                fine = not all(bool(t.isfinite().all()) for t in plain) or _alike(TRIALS[use](llm, samples, plain), llm)
                found[use] = "" if fine else FAULTS[use]
            except (torch.OutOfMemoryError, torch.distributed.DistError):
                raise
            except Exception as error:  # code of a hundred families
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                found[use] = f"{FAULTS[use]} ({reason})"
    return found


def _plain(llm: Any, ids_1L: Tensor) -> Tensor:
    return llm.model(input_ids=ids_1L, use_cache=False).logits[0].float()


def _alike(pairs: Pairs, llm: Any) -> bool:
    """Kernels differ with shapes by rounding (and, in half precision, an expert may be another now and then); faulty
    logits are others by as much as they are."""
    tolerance = 0.15 if llm.dtype.itemsize < 4 else 2e-3
    return all(a.shape == b.shape and bool((a - b).norm() <= tolerance * a.norm()) for a, b in pairs)


def _read(llm: Any, samples: Sequence[Tensor], plain: list[Tensor]) -> Pairs:
    """Embeddings, with padding behind them; and ids with others behind them."""
    return [*_padded(llm, samples, plain), (plain[0][:2], _plain(llm, samples[0][:, :2]))]


def _padded(llm: Any, samples: Sequence[Tensor], plain: list[Tensor], left: bool = False) -> Pairs:
    """Both samples in one batch."""
    sides = [(LONG - ids_1L.shape[1], 0) if left else (0, LONG - ids_1L.shape[1]) for ids_1L in samples]
    ids_BL = torch.cat([F.pad(ids_1L, side) for ids_1L, side in zip(samples, sides, strict=True)])
    mask_BL = torch.cat([F.pad(torch.ones_like(ids_1L), side) for ids_1L, side in zip(samples, sides, strict=True)])
    positions_BL = (mask_BL.cumsum(1) - 1).clamp_min(0)
    return [(torch.cat(plain), llm.logits_at(llm.embed(ids_BL), mask_BL, positions_BL, mask_BL.bool()))]


def _packed(llm: Any, samples: Sequence[Tensor], plain: list[Tensor]) -> Pairs:
    """Two rows, each of both samples, in either order."""
    ids_BL = torch.cat([torch.cat([*samples], 1), torch.cat([*samples[::-1]], 1)])
    counts = [torch.arange(ids_1L.shape[1], device=ids_BL.device) for ids_1L in samples]
    numbers = [torch.full_like(count, number) for number, count in enumerate(counts)]
    positions_BL, samples_BL = (torch.stack([torch.cat(t), torch.cat(t[::-1])]) for t in (counts, numbers))
    mask, keep_BL = llm.block_mask(samples_BL), torch.ones_like(ids_BL, dtype=torch.bool)
    return [(torch.cat(plain + plain[::-1]), llm.logits_at(llm.embed(ids_BL), mask, positions_BL, keep_BL))]


def _streamed(llm: Any, samples: Sequence[Tensor], plain: list[Tensor]) -> Pairs:
    """The longer sample in three pieces, by embeddings and by ids."""
    cache = llm.new_cache()
    first, second, third = samples[0].split([2, 1, LONG - 3], dim=1)
    logits = [llm.step(cache, embeds_BLD=llm.embed(first)), llm.step(cache, second), llm.step(cache, third)]
    return [(plain[0][[1, 2, LONG - 1]], torch.cat(logits))]


class _AsWritten:
    """A `CausalLM` without what a sharding strategy put around its methods: when it is tried, that has been done."""

    def __init__(self, llm: Any):
        self.llm = llm

    def __getattr__(self, name: str) -> Any:
        written = getattr(type(self.llm), name, None)
        return partial(written, self.llm) if callable(written) else getattr(self.llm, name)


TRIALS = {
    READING: _read,
    GENERATING: partial(_padded, left=True),
    PACKING: _packed,
    STREAMING: _streamed,
}
