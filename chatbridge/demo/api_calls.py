"""Validates calls of the page's events before gradio sees them, which would fail on malformed ones."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.block_function import BlockFunction

from chatbridge.common.documents import DocumentError, parse_json, repaired
from chatbridge.web.request_bodies import too_many_json_values

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Of session hashes, events and uploads."""

MAX_PATH = 4096

Plain = dict[str, Any]


class RejectedCall(Exception):
    """A call that gradio does not get to see.

    Args:
        status: of HTTP. reason: what is wrong with it.
    """

    def __init__(self, status: int, reason: str):
        self.status, self.reason = status, reason
        super().__init__(reason)


class CallValidator:
    """Reduces calls to what the page's components can send.

    Args:
        page: whose events are called.
    """

    def __init__(self, page: gr.Blocks):
        self._functions = {number: one for number, one in page.fns.items() if one.fn is not None}
        self._numbers = {one.api_name: number for number, one in self._functions.items()}

    def event(self, body: bytes, route: str, name: str) -> tuple[bytes, BlockFunction]:
        """The cleaned body of a call, and the function that it is for.

        Args:
            route: "queue" and "run" take the event's number from the body ("run": or its name from the path) and need
                a session hash; "call" takes the event's name. name: of the event, in the path.

        Raises:
            RejectedCall: for what the page would not send.
        """
        plain = parse_body(body)
        number = None if route == "call" else plain.get("fn_index")
        if number is None and route != "queue":
            number = self._numbers.get(name)
        if type(number) is not int or number not in self._functions:
            raise RejectedCall(404, "there is no such event")
        function = self._functions[number]
        page = plain.get("session_hash")
        if page is not None or route != "call":
            _name(page, "session_hash")
        data = plain.get("data")
        if not isinstance(data, list) or len(data) != len(function.inputs):
            raise RejectedCall(400, f"data: a list of {len(function.inputs)} values is expected")
        trigger = plain.get("trigger_id")
        clean = {
            "data": [_value(block, data[at], f"data[{at}]") for at, block in enumerate(function.inputs)],
            "fn_index": number,
            "session_hash": page,
            "trigger_id": trigger if type(trigger) is int else None,
            "event_data": _event_data({event for _, event in function.targets}, plain.get("event_data")),
            "simple_format": plain.get("simple_format") is True,
        }
        return json.dumps(clean).encode(), function

    def control(self, body: bytes, texts: tuple[str, ...]) -> bytes:
        """The cleaned body of a call that cancels or resets an event. Raises RejectedCall."""
        plain = parse_body(body)
        clean: Plain = {text: _name(plain.get(text), text) for text in texts}
        if type(plain.get("fn_index")) is int:
            clean["fn_index"] = plain["fn_index"]
        return json.dumps(clean).encode()


def parse_body(body: bytes) -> Plain:
    """The JSON object in a request. Raises RejectedCall."""
    if too_many_json_values(body):
        raise RejectedCall(413, "the request has too many values")
    try:
        plain = parse_json(body, "the request")
    except DocumentError as error:
        raise RejectedCall(400, str(error)) from None
    if not isinstance(plain, dict):
        raise RejectedCall(400, "the request is no JSON object")
    return plain


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise RejectedCall(400, f"{where}: letters, digits, - and _ are expected, 64 at most")
    return value


def _value(block: Any, value: Any, where: str) -> Any:
    """The value of a component, reduced to what it can send."""
    for kind, reader in _READERS.items():
        if isinstance(block, kind):
            return reader(value, where)
    raise RejectedCall(400, f"{where}: nothing can be sent for this")


def _message(value: Any, where: str) -> Plain | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise RejectedCall(400, f"{where}: a text and files are expected")
    files = value.get("files") or []
    if not isinstance(files, list):
        raise RejectedCall(400, f"{where}.files: a list is expected")
    text = value.get("text")
    return {
        "text": "" if text is None else _text(text, f"{where}.text"),
        "files": [_file(one, f"{where}.files[{at}]") for at, one in enumerate(files) if one is not None],
    }


def _file(value: Any, where: str) -> Plain | None:
    if value is None:
        return None
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str) or not 0 < len(path) <= MAX_PATH or "\0" in path:
        raise RejectedCall(400, f"{where}: a file that was uploaded is expected")
    if "://" in path:  # gradio would fetch it
        raise RejectedCall(400, f"{where}: files are uploaded here")
    return {"path": repaired(path), "meta": {"_type": "gradio.FileData"}}


def _number(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**63 or math.isnan(value):
        raise RejectedCall(400, f"{where}: a number is expected")
    return value


def _numbers(value: Any, where: str) -> list[int]:
    if not isinstance(value, list) or not all(type(one) is int and 0 <= one < 2**31 for one in value):
        raise RejectedCall(400, f"{where}: a list of numbers is expected")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RejectedCall(400, f"{where}: a text is expected")
    return repaired(value)


_READERS: dict[type, Callable[[Any, str], Any]] = {
    gr.MultimodalTextbox: _message,
    gr.Slider: _number,
    gr.Number: _number,
    gr.CheckboxGroup: _numbers,
    gr.UploadButton: _file,
    gr.Image: _file,
}


def _event_data(events: set[str], value: Any) -> Plain | None:
    """The data of an edit, or of a chosen example."""
    if not events & {"edit", "example_select"}:
        return None
    index = value.get("index") if isinstance(value, dict) else None
    places = index if isinstance(index, list) else [index]
    if not places or not all(type(one) is int and 0 <= one < 2**31 for one in places):
        raise RejectedCall(400, "event_data.index: the number of a message is expected")
    clean = {"index": index, "value": value.get("value"), "previous_value": ""}
    if "edit" in events:
        clean["value"] = _text(value.get("value"), "event_data.value")
    else:
        clean["value"] = None
    return clean
