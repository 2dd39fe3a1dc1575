"""Reads whole request bodies in bounded memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

MAX_JSON_VALUES = 1_000_000
"""In a JSON body: a value of a few bytes, such as ``{},``, can take a hundred times as much memory."""


class BodyTooLarge(Exception):
    """A body is larger than allowed."""


class BodiesFull(Exception):
    """The bodies that are being received exceed the memory for all of them."""


@dataclass(eq=False)
class _Body:
    data: bytearray = field(default_factory=bytearray)
    received_at: float = 0.0
    dropped: bool = False


class BodyReader:
    """Receives bodies. Where they exceed `max_total` bytes together, the one that has stalled longest is dropped."""

    def __init__(self, max_total: int):
        self.max_total = max_total
        self._receiving: list[_Body] = []
        self._size = 0

    async def read(self, scope: Scope, receive: Receive, max_bytes: int) -> bytes:
        """The whole body of a request.

        Raises:
            BodyTooLarge: more than `max_bytes`. BodiesFull: this one was dropped. ClientDisconnect: it ended early.
        """
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > max_bytes:
            raise BodyTooLarge
        body = _Body(received_at=time.monotonic())
        self._receiving.append(body)
        try:
            more = True
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise ClientDisconnect
                self._take(body, message.get("body", b""), max_bytes)
                more = message.get("more_body", False)
            return bytes(body.data)
        finally:
            self._size -= len(body.data)
            self._receiving.remove(body)

    def _take(self, body: _Body, part: bytes, max_bytes: int) -> None:
        body.data += part
        self._size += len(part)
        body.received_at = time.monotonic()
        if len(body.data) > max_bytes:
            raise BodyTooLarge
        while self._size > self.max_total:
            oldest = min((one for one in self._receiving if one.data), key=lambda one: one.received_at)
            self._size -= len(oldest.data)
            oldest.data, oldest.dropped = bytearray(), True
        if body.dropped:
            raise BodiesFull


def too_many_json_values(body: bytes) -> bool:
    """Whether a JSON body may hold more than `MAX_JSON_VALUES`; counts separators, those inside strings included."""
    return sum(body.count(sign) for sign in (b",", b"[", b"{")) > MAX_JSON_VALUES
