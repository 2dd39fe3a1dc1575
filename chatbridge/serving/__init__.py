"""An HTTP endpoint that speaks OpenAI's chat completions over `chatbridge.inference` (docs/serving.md)."""

from chatbridge.serving.app import Endpoint, ServingOptions, make_app

__all__ = ["Endpoint", "ServingOptions", "make_app"]
