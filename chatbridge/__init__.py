"""ChatBridge: frozen encoders and a frozen language model, joined by small trainable perceivers."""

from __future__ import annotations

__version__ = "0.1.0"


def register_all() -> None:
    """Import every module that registers a built-in part. The only import side effect, and an explicit one."""
    import chatbridge.datasets
    import chatbridge.models
    import chatbridge.original
    import chatbridge.processors
    import chatbridge.runners
    import chatbridge.tasks  # noqa: F401
