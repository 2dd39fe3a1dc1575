"""Talking to a model: conversations about any mixture of media, with no web code."""

from chatbridge.inference.attachments import Medium
from chatbridge.inference.engine import Engine, load_for_chat
from chatbridge.inference.prompt import Exchange
from chatbridge.inference.session import ChatSession, Reply, ReplyStream
from chatbridge.inference.settings import GenerationSettings

__all__ = ["ReplyStream", "ChatSession", "Engine", "Exchange", "GenerationSettings", "Medium", "Reply", "load_for_chat"]
