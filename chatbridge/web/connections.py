"""Connections that end when nothing comes, and that make room for each other.

uvicorn waits for ever for the rest of a request and for a client to read its answer, and whoever opens enough of such
connections leaves none for others. Here what a client owes has a time limit, and of too many connections those go
first whose requests are on their way, of the network that holds most.
"""

from __future__ import annotations

import ipaddress
import resource
from collections import Counter
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0
"""For the head of a request, from the connection or from its first byte on."""

BODY_SECONDS, SLOWEST_BODY = 120.0, 64 * 1024
"""For its body; only one that brings so many bytes a second may take longer."""

UNREAD_SECONDS, SLOWEST_READER = 60.0, 1024
"""An answer that is not read, so many bytes a second of it at least, ends after so long."""

LINGER_SECONDS = 10.0
"""For the last bytes of a connection that is closed."""

FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
MOST = 512 if FILES == resource.RLIM_INFINITY else min(512, FILES // 2)
"""Connections at a time; files need descriptors, too."""

LATE = "the request did not arrive within {:g} s"
CROWDED = "too many connections are open; try again later"


class Connection(H11Protocol):
    """One connection. `check` is to be called about every second.

    Attributes:
        peer: the client's network. since: when what is waited for began (the loop's time).
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.peer = network_of(self.client[0]) if self.client else ""
        self.since, self._owed, self._arrived = self.loop.time(), "head", 0
        self._unread: tuple[float, int] | None = None
        self._closed: float | None = None
        self._make_room()

    def data_received(self, data: bytes) -> None:
        self._arrived += len(data)
        super().data_received(data)
        self._note()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note()

    @property
    def waits(self) -> bool:
        """Whether nothing is to be done for it before more has come."""
        return self._owed is not None

    def _note(self) -> None:
        owed = self._what_is_owed()
        if owed != self._owed:
            self.since, self._owed, self._arrived = self.loop.time(), owed, 0

    def _what_is_owed(self) -> str | None:
        """What the client has to send: "head", "body", a further request if it likes ("")."""
        if self.conn.their_state is h11.SEND_BODY:
            return "body"
        if self.conn.their_state is h11.IDLE:
            return "head" if self.cycle is None or self.conn.trailing_data[0] else ""
        return None

    def check(self, now: float) -> None:
        """End it where its client takes too long.

        Args:
            now: the loop's time.
        """
        if self.transport.is_closing():
            self._closed = self._closed or now
            if now - self._closed > LINGER_SECONDS:
                self.transport.abort()
        elif self._is_unread(now):
            self.transport.abort()
        elif self._owed == "head" and now - self.since > HEAD_SECONDS:
            if self._arrived:
                self.turn_away(408, LATE.format(HEAD_SECONDS))
            else:  # browsers open connections that they may need
                self.transport.close()
        elif self._owed == "body" and self.flow.read_paused:
            self.since, self._arrived = now, 0  # it is us who do not read
        elif self._owed == "body" and now - self.since > max(BODY_SECONDS, self._arrived / SLOWEST_BODY):
            self.turn_away(408, LATE.format(BODY_SECONDS))

    def _is_unread(self, now: float) -> bool:
        """Whether the answer waits for a client that does not read it."""
        size = self.transport.get_write_buffer_size()
        if not self.flow.write_paused:
            self._unread = None
        elif self._unread is None:
            self._unread = now, size
        elif now - self._unread[0] > UNREAD_SECONDS:
            before, self._unread = self._unread[1], (now, size)
            return before - size < SLOWEST_READER * UNREAD_SECONDS
        return False

    def turn_away(self, status: int, message: str) -> None:
        """Answer a request that is not (wholly) there, and close."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            kind, body = self.words(status, message)
            headers = [("content-type", kind), ("content-length", str(len(body))), ("connection", "close")]
            start = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase)
            events = (start, h11.Data(data=body), h11.EndOfMessage())
            self.transport.write(b"".join(map(self.conn.send, events)))
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's, for what is no HTTP; its own lets an application answer, too, and fails on that."""
        self.turn_away(400, msg)

    def words(self, status: int, message: str) -> tuple[str, bytes]:
        """Content type and content of such an answer."""
        return "text/plain; charset=utf-8", message.encode()

    def _make_room(self) -> None:
        """Where there are too many: of the network that has most of them, the one that has owed something for longest
        goes, then the oldest; a newcomer from there is turned away instead of one that is being answered."""
        if len(self.connections) <= MOST:
            return
        held = Counter(one.peer for one in self.connections)
        fullest = max(held.values())
        crowd = [one for one in self.connections if held[one.peer] == fullest]
        waiting = [one for one in crowd if one.waits]
        first = min(waiting or crowd, key=lambda one: one.since)
        if first is self:
            self.turn_away(503, CROWDED)
        else:
            self.connections.discard(first)
            first.transport.abort()


def network_of(address: str) -> str:
    """The network of one client: its IPv4 address, or the /64 that providers give to one customer in IPv6."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))
