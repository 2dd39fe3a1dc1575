"""The page for tests: served in the test's own process on a tiny model, and users without a browser."""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from gradio_client import Client, handle_file

from chatbridge.demo import view
from chatbridge.demo.page import PageText
from chatbridge.demo.server import DemoOptions, RunningDemo, serve
from chatbridge.inference import ChatSession, Engine, load_for_chat
from chatbridge.inference.limits import MediaLimits
from tests.inference.tools import write_config
from tests.patience import PATIENCE
from tests.processes import free_port

SMALL = MediaLimits(max_bytes=2**20, max_count=6, max_seconds=60.0, max_pixels=4_000_000)


@contextmanager
def page(
    folder: Path, engines: Sequence[Engine], limits: MediaLimits = SMALL, names: Sequence[str] = (), **serving: Any
) -> Iterator[RunningDemo]:
    """The page on a free port. `folder` is for a configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    loaded = load_for_chat(write_config(folder))
    words = PageText("ChatBridge", names or [f"model {n}" for n, _ in enumerate(engines)], "a tiny model")
    with serve(engines, loaded, words, limits, DemoOptions(port=free_port(), **serving)) as running:
        yield running


@contextmanager
def slowly(engine: Engine, seconds: float = 0.03) -> Iterator[None]:
    """Every step of the language model takes longer."""
    llm = engine.model.llm
    step = llm.step

    def slow(*arguments: Any, **more: Any) -> Any:
        time.sleep(seconds)
        return step(*arguments, **more)

    llm.step = slow
    try:
        yield
    finally:
        del llm.step


def alone(engine: Engine, *turns: tuple[str, Sequence[Path]]) -> list[str]:
    """What the model says to these questions in a conversation of their own."""
    session = ChatSession(engine)
    return [session.say(text, media=files).text for text, files in turns]


@dataclass
class Shown:
    """What a user sees after an event.

    Attributes:
        chats: of every model, the messages. box: the text box's update. numbers, seen: media, and those not muted.
    """

    chats: list[list[dict]]
    box: dict
    seen: list[int]
    labels: list[str]
    status: str
    wrong: bool

    @classmethod
    def of(cls, values: Sequence[Any]) -> Shown:
        *chats, box, group, status = values
        labels = [label for label, _ in group.get("choices", [])]
        text = html.unescape(re.sub("<[^>]*>", "", status))
        return cls(chats, box, group.get("value", []), labels, text, "wrong" in status.split(">")[0])

    @property
    def messages(self) -> list[dict]:
        return self.chats[0]

    @property
    def typed(self) -> dict:
        """What stands in the text box."""
        return self.box.get("value") or {"text": "", "files": []}

    @property
    def answer(self) -> str:
        return text_of(self.messages[-1])

    def markup(self, message: int) -> str:
        """The HTML in a message: media or notes."""
        return "".join(part["value"] for part in self.messages[message]["content"] if part["type"] == "component")


def text_of(message: dict) -> str:
    return "".join(view.unescape(part["text"]) for part in message["content"] if part["type"] == "text")


class User:
    """Somebody with gradio's own client."""

    def __init__(self, running: RunningDemo):
        self.client = Client(running.address, verbose=False, analytics_enabled=False, download_files=False)

    def ask(self, text: str, *files: Path, **settings: float) -> Shown:
        return Shown.of(self.begin(text, *files, **settings).result(timeout=PATIENCE))

    def begin(self, text: str, *files: Path, **settings: float) -> Any:
        """Ask without waiting: gradio's job."""
        said = {"text": text, "files": [handle_file(file) for file in files]}
        return self.client.submit(said, api_name="/ask", **settings)

    def do(self, name: str, *arguments: Any, **more: Any) -> Any:
        """Another event by its name."""
        found = self.client.predict(*arguments, api_name=f"/{name}", **more)
        return Shown.of(found) if isinstance(found, tuple) and len(found) > 2 else found

    @property
    def name(self) -> str:
        return self.client.session_hash


class Browser:
    """As much of a page as it takes to open it, to ask and to vanish: plain requests."""

    def __init__(self, running: RunningDemo, name: str):
        self.http = httpx.Client(base_url=running.address, timeout=PATIENCE)
        self.name = name
        self.functions = {one["api_name"]: one["id"] for one in self.http.get("config").json()["dependencies"]}
        self._heart: httpx.Response | None = None

    def open(self) -> Browser:
        """Say that the page is there, as long as it is."""
        request = self.http.build_request("GET", f"gradio_api/heartbeat/{self.name}")
        self._heart = self.http.send(request, stream=True)
        return self

    def upload(self, *files: tuple[str, bytes]) -> httpx.Response:
        return self.http.post("gradio_api/upload", files=[("files", file) for file in files])

    def join(self, event: str, data: list[Any], **more: Any) -> httpx.Response:
        """Put an event into the queue."""
        body = {"data": data, "fn_index": self.functions[event], "session_hash": self.name, **more}
        return self.http.post("gradio_api/queue/join", json=body)

    def ask(self, text: str, *files: str) -> httpx.Response:
        said = {"text": text, "files": [{"path": file, "meta": {"_type": "gradio.FileData"}} for file in files]}
        return self.join("ask", [said, 128, 0, 1, 0, 1, 1, -1])

    @contextmanager
    def messages(self) -> Iterator[Iterator[dict]]:
        """What the server sends about the events of this page."""
        with self.http.stream("GET", f"gradio_api/queue/data?session_hash={self.name}") as stream:
            yield (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))

    def last(self) -> list[Any] | None:
        """What the event that was put into the queue gives in the end."""
        with self.messages() as messages:
            for message in messages:
                if message["msg"] == "process_completed":
                    return message["output"]
        return None

    def close(self) -> None:
        if self._heart is not None:
            self._heart.close()
        self.http.close()
