"""Caption and question cleaning, string by string."""

from __future__ import annotations

from chatbridge.common.registry import PROCESSORS
from chatbridge.processors.text import (
    BlipCaptionConfig,
    BlipQuestionConfig,
    CaptionTextConfig,
    blip_caption,
    blip_question,
    pre_caption,
)


def test_cleaning(golden_json):
    for r in golden_json("text_processors")["results"]:
        text = r["text"]
        assert pre_caption(text) == r["valor_pre_caption"], text
        assert pre_caption(text, max_words=5) == r["valor_pre_caption_max5"], text
        assert blip_caption(text) == r["blip_caption"], text
        assert blip_caption(text, prompt="a photo of ", max_words=5) == r["blip_caption_prompt_max5"], text
        assert blip_question(text) == r["blip_question"], text
        assert blip_question(text, max_words=5) == r["blip_question_max5"], text


def test_by_name(golden_json):
    """The registered processors do the same as the functions."""
    caption = PROCESSORS.build(CaptionTextConfig(max_words=5))
    blip = PROCESSORS.build(BlipCaptionConfig(prompt="a photo of ", max_words=5))
    question = PROCESSORS.build(BlipQuestionConfig())
    for r in golden_json("text_processors")["results"]:
        assert caption(r["text"]) == r["valor_pre_caption_max5"]
        assert blip(r["text"]) == r["blip_caption_prompt_max5"]
        assert question(r["text"]) == r["blip_question"]
