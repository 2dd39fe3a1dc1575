"""A dialogue -> segments of text (supervised or not) and media slots -> token ids; templates and stop rules."""

from chatbridge.conversation.dialogue import ASSISTANT, HUMAN, Dialogue, MediaSource, Turn
from chatbridge.conversation.prompt import PromptFormat, caption_segments
from chatbridge.conversation.segments import Media, Segment, Text
from chatbridge.conversation.stop import StopOnText, clean_answer
from chatbridge.conversation.templates import Templates
from chatbridge.conversation.tokens import Slot, TokenizedSample, tokenize

__all__ = [
    "ASSISTANT",
    "HUMAN",
    "Dialogue",
    "Media",
    "PromptFormat",
    "Segment",
    "Slot",
    "MediaSource",
    "StopOnText",
    "Templates",
    "Text",
    "TokenizedSample",
    "Turn",
    "caption_segments",
    "clean_answer",
    "tokenize",
]
