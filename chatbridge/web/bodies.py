"""Bodies of requests, read whole before anything is done about them, in bounded memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect
from starlette.types import Receive

MOST_VALUES = 1_000_000
"""In a JSON body: a few bytes of it, such as ``{},``, can take a hundred times as many in memory."""


class TooLarge(Exception):
    """A body that has more bytes than allowed."""


class NoRoom(Exception):
    """All bodies that are arriving are too large together."""


@dataclass(eq=False)
class _Arriving:
    data: bytearray = field(default_factory=bytearray)
    touched: float = 0.0
    dropped: bool = False


class Bodies:
    """Bodies that are arriving; of too many bytes, that body goes first for which nothing has come for longest.

    Args:
        most: bytes of all together.
    """

    def __init__(self, most: int):
        self.most = most
        self._arriving: list[_Arriving] = []
        self._size = 0

    async def read(self, receive: Receive, most: int) -> bytes:
        """The whole body of a request.

        Raises:
            TooLarge: it has more than `most` bytes. NoRoom: it was the one to go. ClientDisconnect: it ended early.
        """
        body = _Arriving(touched=time.monotonic())
        self._arriving.append(body)
        try:
            more = True
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise ClientDisconnect
                self._take(body, message.get("body", b""), most)
                more = message.get("more_body", False)
            return bytes(body.data)
        finally:
            self._size -= len(body.data)
            self._arriving.remove(body)

    def _take(self, body: _Arriving, part: bytes, most: int) -> None:
        body.data += part
        self._size += len(part)
        body.touched = time.monotonic()
        if len(body.data) > most:
            raise TooLarge
        while self._size > self.most:
            oldest = min((one for one in self._arriving if one.data), key=lambda one: one.touched)
            self._size -= len(oldest.data)
            oldest.data, oldest.dropped = bytearray(), True
        if body.dropped:
            raise NoRoom


def too_many_values(body: bytes) -> bool:
    """Whether a JSON body holds more values than are looked at; counts their separators, in texts, too."""
    return sum(body.count(sign) for sign in (b",", b"[", b"{")) > MOST_VALUES
