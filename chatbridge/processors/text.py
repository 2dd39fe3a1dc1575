"""Cleaning of captions and questions, as the published data and metrics expect it (the original's blip_processors.py).

Stage 1 cleans captions with `pre_caption`; stage 2 takes text as it is; BLIP-style evaluation uses `blip_caption`
and `blip_question`. Word counts split on single spaces, so that a kept double space counts as in the original.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from chatbridge.common.registry import PROCESSORS
from chatbridge.common.schema import key

_LEADING = ",.!?*#:;~"
_BLIP_PUNCTUATION = re.compile(r'[.!"()*#:;~]')
_SPACES = re.compile(r"\s{2,}")
_AS_SPACE = str.maketrans({"-": " ", "/": " "})


def pre_caption(text: str, max_words: int | None = None) -> str:
    """A training caption: lower case, no leading punctuation, hyphens and slashes as spaces, single spaces."""
    text = text.lower().lstrip(_LEADING).translate(_AS_SPACE).replace("<person>", "person")
    return first_words(_single_spaced(text), max_words)


def blip_caption(text: str, prompt: str = "", max_words: int | None = 50) -> str:
    """A caption for BLIP-style evaluation: `prompt`, then lower case with most punctuation as spaces."""
    return prompt + first_words(_single_spaced(_BLIP_PUNCTUATION.sub(" ", text.lower())), max_words)


def blip_question(text: str, max_words: int | None = 50) -> str:
    """A question for BLIP-style evaluation: lower case, most punctuation (but not ``?``) dropped."""
    return first_words(_BLIP_PUNCTUATION.sub("", text.lower()).rstrip(" "), max_words)


def first_words(text: str, count: int | None) -> str:
    """The first `count` words (None: all), where words are what stands between single spaces."""
    if count is None:
        return text
    words = text.split(" ")
    return text if len(words) <= count else " ".join(words[:count])


def _single_spaced(text: str) -> str:
    return _SPACES.sub(" ", text).rstrip("\n").strip(" ")


@dataclass(kw_only=True)
class TextConfig:
    """Keys of the text processors."""

    max_words: int | None = key(None, help="keep this many words at most", unit="words", low=1)
    prompt: str = key("", help="text put in front of every caption")


class TextProcessor:
    """A text-cleaning function with its settings: call it with a string, get a string."""

    clean: Callable[..., str]

    def __init__(self, config: TextConfig):
        self.config = config

    def __call__(self, text: str) -> str:
        return self.config.prompt + type(self).clean(text, max_words=self.config.max_words)


@dataclass(kw_only=True)
class CaptionTextConfig(TextConfig):
    """Keys of ``caption_text`` (stage-1 captions)."""


@dataclass(kw_only=True)
class BlipCaptionConfig(TextConfig):
    """Keys of ``blip_caption``."""

    max_words: int | None = key(50, help="keep this many words at most", unit="words", low=1)


@dataclass(kw_only=True)
class BlipQuestionConfig(TextConfig):
    """Keys of ``blip_question``."""

    max_words: int | None = key(50, help="keep this many words at most", unit="words", low=1)


@PROCESSORS.register("caption_text", config=CaptionTextConfig)
class CaptionText(TextProcessor):
    clean = staticmethod(pre_caption)


@PROCESSORS.register("blip_caption", config=BlipCaptionConfig)
class BlipCaption(TextProcessor):
    clean = staticmethod(blip_caption)


@PROCESSORS.register("blip_question", config=BlipQuestionConfig)
class BlipQuestion(TextProcessor):
    clean = staticmethod(blip_question)
