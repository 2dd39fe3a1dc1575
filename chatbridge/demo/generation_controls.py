"""The page's sliders for generation settings, with their ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chatbridge.inference import Engine, GenerationSettings

MAX_LENGTH = 1024


@dataclass(frozen=True)
class SliderSpec:
    """One slider.

    Attributes:
        name: of the setting. label, help: shown. low, high, step: its range. value: initially.
    """

    name: str
    label: str
    help: str
    low: float
    high: float
    step: float
    value: float


def controls(engine: Engine) -> list[SliderSpec]:
    """The sliders for a model: answers may be as long as half its context."""
    context = engine.model.llm.context
    max_length = MAX_LENGTH if context is None else max(1, min(MAX_LENGTH, context // 2))
    usual = engine.answer_length(GenerationSettings())
    return [
        SliderSpec(
            "max_new_tokens", "Length at most", "tokens of the answer", 1, max_length, 1, min(usual, max_length)
        ),
        SliderSpec("temperature", "Temperature", "0 takes the likeliest token, 1 samples as trained", 0, 2, 0.05, 0),
        SliderSpec("top_p", "Top p", "sample among tokens of this probability together", 0.05, 1, 0.05, 1),
        SliderSpec("top_k", "Top k", "sample among so many tokens; 0 for all", 0, 200, 1, 0),
        SliderSpec("repetition_penalty", "Repetition penalty", "above 1 avoids what was said already", 1, 2, 0.05, 1),
        SliderSpec("num_beams", "Beams", "above 1 searches for the likeliest whole answer", 1, 8, 1, 1),
    ]


def to_settings(sliders: Sequence[SliderSpec], values: Sequence[float | None]) -> GenerationSettings:
    """Settings from a value for each slider, followed by the seed, -1 for none.

    Raises:
        ValueError: for a value outside of its range.
    """
    chosen = {}
    *numbers, seed = values
    for control, value in zip(sliders, numbers, strict=True):
        value = control.value if value is None else value
        chosen[control.name] = int(value) if control.step == 1 else float(value)
    return GenerationSettings(**chosen, seed=None if seed is None or seed < 0 else int(seed))
