"""Generates the tokens of one answer, one at a time.

Greedy decoding and sampling are a loop of our own over transformers' logits processors, because its ``generate`` cannot
yield tokens to a caller without a thread, draws from a random state that all answers share, and does not leave the
cache with exactly what was read. Beam search is ``generate``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chatbridge.inference.prefix_cache import PrefixCache
from chatbridge.inference.prompt import Position
from chatbridge.inference.settings import GenerationSettings
from chatbridge.models.llm import Stop

Embed = Callable[[int], Tensor]
"""Embeddings [1, L - start, D] of a prompt's positions from `start` on."""


@dataclass(frozen=True, kw_only=True)
class DecodingTask:
    """One answer to generate.

    Attributes:
        cache: holds a prefix of the prompt.
        positions, embed: the prompt.
        settings: how tokens are chosen; max_tokens: how many at most; seed: of the sampling.
    """

    cache: PrefixCache
    positions: list[Position]
    embed: Embed
    settings: GenerationSettings
    max_tokens: int
    seed: int

    def read_prompt(self, end: int) -> Tensor | None:
        """Read what the cache does not hold yet of the first `end` positions; logits [1, V] behind them."""
        kept = len(self.cache.positions)
        if kept >= end:
            return None
        return self.cache.read(self.positions[kept:end], embeds_BLD=self.embed(kept)[:, : end - kept])


def decode_tokens(task: DecodingTask) -> Iterator[int]:
    """The answer's tokens, without the end token; each is computed when it is requested."""
    logits_1V = task.read_prompt(len(task.positions))
    device = logits_1V.device
    processors = _processors(task.settings)
    generator = torch.Generator(device).manual_seed(task.seed) if task.settings.samples else None
    new_1L = torch.empty((1, 0), dtype=torch.int64, device=device)
    for number in range(task.max_tokens):
        scores_1V = processors(new_1L, logits_1V) if processors else logits_1V
        if generator is None:
            next_11 = scores_1V.argmax(-1, keepdim=True)
        else:
            next_11 = torch.multinomial(scores_1V.softmax(-1), 1, generator=generator)
        token = int(next_11)
        if token in task.cache.llm.eos_ids:
            return
        yield token
        if number + 1 < task.max_tokens:
            new_1L = torch.cat([new_1L, next_11], 1) if processors else new_1L
            logits_1V = task.cache.read([token], ids_BL=next_11)


def beam_search(task: DecodingTask, stop: Stop) -> list[int]:
    """The tokens of the likeliest answer that beam search finds.

    The prompt is read once, before it is copied for every beam.
    """
    last = len(task.positions) - 1
    task.read_prompt(last)
    # ``generate`` wants the length of the whole prompt, and looks only at what the cache does not hold.
    embeds_BLD = task.embed(last).expand(-1, last + 1, -1)
    settings = task.settings
    sampling = {"top_p": settings.top_p, "top_k": settings.top_k, "temperature": settings.temperature}
    llm = task.cache.llm
    with task.cache.precision():
        ids_BL = llm.generate(
            embeds_BLD,
            torch.ones(embeds_BLD.shape[:2], dtype=torch.int64, device=embeds_BLD.device),
            task.max_tokens,
            num_beams=settings.num_beams,
            do_sample=settings.samples,
            stop=stop,
            seed=task.seed if settings.samples else None,
            past=task.cache.copy_for_beams(settings.num_beams),
            repetition_penalty=settings.repetition_penalty,
            **(sampling if settings.samples else {}),
        )
    return llm.trim(ids_BL[0].tolist(), stop)


def _processors(settings: GenerationSettings) -> LogitsProcessorList:
    """Those that ``generate`` would use, in its order."""
    chosen = LogitsProcessorList()
    if settings.repetition_penalty != 1.0:
        chosen.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.samples:
        if settings.temperature != 1.0:
            chosen.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k:
            chosen.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1.0:
            chosen.append(TopPLogitsWarper(settings.top_p))
    return chosen
