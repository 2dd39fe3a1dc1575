"""How an answer is drawn from the model."""

from __future__ import annotations

from dataclasses import dataclass


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
        seed: of the sampling; None draws one, which the reply tells.

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
        _check(self.max_new_tokens is None or self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "1 up")
        _check(0 <= self.temperature < float("inf"), "temperature", self.temperature, "0 (greedy) up")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 up to 1")
        _check(self.top_k >= 0, "top_k", self.top_k, "0 (all) up")
        _check(0 < self.repetition_penalty < float("inf"), "repetition_penalty", self.repetition_penalty, "above 0")
        _check(self.num_beams >= 1, "num_beams", self.num_beams, "1 up")
        _check(self.seed is None or 0 <= self.seed < 2**63, "seed", self.seed, "0 up to 2**63")

    @property
    def samples(self) -> bool:
        """Whether chance has a part in the answer."""
        return self.temperature > 0


def _check(fine: bool, name: str, value: object, wanted: str) -> None:
    if not fine:
        raise ValueError(f"{name} is {value}; take a value from {wanted}")
