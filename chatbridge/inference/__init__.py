"""Talking to a model: conversations about any mixture of media, with no web code."""

from chatbridge.inference.engine import Engine, load_for_chat
from chatbridge.inference.media import Medium
from chatbridge.inference.prompt import Exchange
from chatbridge.inference.session import Answer, ChatSession, Reply
from chatbridge.inference.settings import GenerationSettings

__all__ = ["Answer", "ChatSession", "Engine", "Exchange", "GenerationSettings", "Medium", "Reply", "load_for_chat"]
