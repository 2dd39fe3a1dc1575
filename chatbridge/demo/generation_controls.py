"""The page's sliders for generation settings, with their ranges."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr

from chatbridge.inference import Engine, GenerationSettings

MAX_LENGTH = 1024


def controls(engine: Engine) -> list[gr.Slider]:
    """A slider for each setting, whose name is its `elem_id`: answers may be as long as half the model's context."""
    context = engine.model.llm.context
    max_length = MAX_LENGTH if context is None else max(1, min(MAX_LENGTH, context // 2))
    usual = min(engine.answer_length(GenerationSettings()), max_length)
    return [
        _slider("max_new_tokens", "Length at most", "tokens of the answer", 1, max_length, 1, usual),
        _slider("temperature", "Temperature", "0 takes the likeliest token, 1 samples as trained", 0, 2, 0.05, 0),
        _slider("top_p", "Top p", "sample among tokens of this probability together", 0.05, 1, 0.05, 1),
        _slider("top_k", "Top k", "sample among so many tokens; 0 for all", 0, 200, 1, 0),
        _slider("repetition_penalty", "Repetition penalty", "above 1 avoids what was said already", 1, 2, 0.05, 1),
        _slider("num_beams", "Beams", "above 1 searches for the likeliest whole answer", 1, 8, 1, 1),
    ]


def _slider(name: str, label: str, info: str, low: float, high: float, step: float, value: float) -> gr.Slider:
    return gr.Slider(low, high, value, step=step, label=label, info=info, elem_id=name, render=False)


def to_settings(sliders: Sequence[gr.Slider], values: Sequence[float | None]) -> GenerationSettings:
    """Settings from a value for each slider, followed by the seed, -1 for none.

    Raises:
        ValueError: for a value outside of its range.
    """
    chosen = {}
    *numbers, seed = values
    for slider, value in zip(sliders, numbers, strict=True):
        value = slider.value if value is None else value
        chosen[slider.elem_id] = int(value) if slider.step == 1 else float(value)
    return GenerationSettings(**chosen, seed=None if seed is None or seed < 0 else int(seed))
