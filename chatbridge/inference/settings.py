"""Generation settings."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

MAX_TOKENS, MAX_BEAMS = 2**20, 32
"""No model's context is longer; every beam takes the memory of a conversation of its own."""


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Settings of one answer, by transformers' names and with its meanings.

    Attributes:
        max_new_tokens: length of the answer at most; None takes 300, the original demo's, or half the context where
            that is less.
        temperature: 0 takes the likeliest token each time; the original demo samples with 1.0 and top_p 0.9.
        top_p: sample among the likeliest tokens that together have this probability.
        top_k: sample among so many of the likeliest tokens; 0 for all.
        repetition_penalty: above 1 makes tokens that the answer holds already less likely.
        num_beams: above 1 searches for the likeliest answer as a whole; such an answer comes in one piece.
        seed: of the sampling; None draws one, which `Reply.seed` holds.

    Raises:
        ValueError: for a value out of range.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            _check_whole("max_new_tokens", self.max_new_tokens, 1, MAX_TOKENS)
        if self.temperature != 0:
            _check_number("temperature", self.temperature, 0.001, 100.0, "0 (greedy), or ")
        _check_number("top_p", self.top_p, 1e-6, 1.0)
        _check_whole("top_k", self.top_k, 0, MAX_TOKENS)
        _check_number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _check_whole("num_beams", self.num_beams, 1, MAX_BEAMS)
        if self.seed is not None:
            _check_whole("seed", self.seed, 0, 2**63 - 1)

    @property
    def samples(self) -> bool:
        """Whether the answer is sampled."""
        return self.temperature > 0


def _check_number(name: str, value: object, low: float, high: float, others: str = "") -> None:
    # Outside of these, scores divided by the value overflow, and there is nothing left to sample from.
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
        raise ValueError(f"{name} is {_shown(value)}; take a value from {others}{low:g} to {high:g}")


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:
        raise ValueError(f"{name} is {_shown(value)}; take a value from {low} to {high}")


def _shown(value: object) -> str:
    if isinstance(value, Integral) and abs(value) >= 10**20:  # thousands of digits cannot even be written out
        return "far too large" if value > 0 else "far too small"
    return repr(value)[:50]
