"""A server of a tiny model in a thread of the test, and clients that talk to it."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

from chatbridge.inference import Engine
from chatbridge.serving import Endpoint, ServingOptions
from chatbridge.serving.server import Server
from tests.patience import PATIENCE, until

ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "what?"}], "max_tokens": 5}


class Served:
    """An engine served on a free port of this machine, until `close`."""

    def __init__(self, engine: Engine, **options: Any):
        self.endpoint = Endpoint(engine, ServingOptions(model_name="tiny", **options))
        self.server = Server(self.endpoint, "127.0.0.1", 0, grace=1.0)
        self.thread = threading.Thread(target=self.server.run_until_stopped, daemon=True)
        self.thread.start()
        until(lambda: self.server.started)
        self.url = f"http://127.0.0.1:{self.server.port}"

    def client(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)

    def post(self, body: Any, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        """Status and error object of a request that fails; sees that others are answered as before."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"{self.url}/v1/chat/completions"
        response = http("POST", url, content=content, headers={"Content-Type": "application/json"} | (headers or {}))
        after = http("POST", url, json=ASKED)
        assert after.status_code == 200 and self.endpoint.queue.occupied == 0
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return response.status_code, error

    def close(self) -> None:
        self.server.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()


def http(method: str, url: str, **more: Any) -> httpx.Response:
    """A request with patience: httpx gives up after 5 s, in which a busy machine may not have come to answer."""
    return httpx.request(method, url, timeout=PATIENCE, **more)


def data_url(file: Path | bytes, kind: str = "application/octet-stream") -> str:
    data = file if isinstance(file, bytes) else file.read_bytes()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def video(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url, **more}}


def sound(file: Path | bytes, kind: str = "wav") -> dict[str, Any]:
    data = file if isinstance(file, bytes) else file.read_bytes()
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": kind}}


def user(*parts: str | dict[str, Any]) -> dict[str, Any]:
    if len(parts) == 1 and isinstance(parts[0], str):
        return {"role": "user", "content": parts[0]}
    return {"role": "user", "content": [text(part) if isinstance(part, str) else part for part in parts]}


def assistant(words: str) -> dict[str, Any]:
    return {"role": "assistant", "content": words}
