"""Connections with deadlines, and a limit on their number that one network cannot use up.

uvicorn waits for ever for the rest of a request and for a client to read its response, so that a few hundred idle
connections would lock everybody else out. Here both have a time limit, and beyond `MAX_CONNECTIONS` those with
unfinished requests are closed first, of the network that holds most.
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
"""For a request's head, counted from the connection or from its first byte."""

BODY_SECONDS, SLOWEST_BODY = 120.0, 64 * 1024
"""For a request's body; one that arrives at this rate (bytes per second) may take longer."""

UNREAD_SECONDS, SLOWEST_READER = 60.0, 1024
"""A response that is read more slowly than this (bytes per second) is aborted after so long."""

LINGER_SECONDS = 10.0
"""For a closing connection to send its last bytes."""

_DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
MAX_CONNECTIONS = 512 if _DESCRIPTORS == resource.RLIM_INFINITY else min(512, _DESCRIPTORS // 2)
"""Half of the file descriptors are left for files."""

TIMEOUT_MESSAGE = "the request did not arrive within {:g} s"
TOO_MANY_MESSAGE = "too many connections are open; try again later"


class Connection(H11Protocol):
    """One connection. `check` must be called about every second.

    Attributes:
        network: of the client. since: when the current wait for the client began (the loop's time).
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.network = network_of(self.client[0]) if self.client else ""
        self.since, self._expected, self._received = self.loop.time(), "head", 0
        self._unread: tuple[float, int] | None = None
        self._closed: float | None = None
        self._enforce_limit()

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)
        self._update()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update()

    @property
    def incomplete(self) -> bool:
        """Whether it waits for (the rest of) a request."""
        return self._expected is not None

    def _update(self) -> None:
        expected = self._expected_part()
        if expected != self._expected:
            self.since, self._expected, self._received = self.loop.time(), expected, 0

    def _expected_part(self) -> str | None:
        """What the client has to send next: "head", "body", "" between two requests, None while it is being served."""
        if self.conn.their_state is h11.SEND_BODY:
            return "body"
        if self.conn.their_state is h11.IDLE:
            return "head" if self.cycle is None or self.conn.trailing_data[0] else ""
        return None

    def check(self, now: float) -> None:
        """Close it if its client has taken too long.

        Args:
            now: the loop's time.
        """
        if self.transport.is_closing():
            self._closed = self._closed or now
            if now - self._closed > LINGER_SECONDS:
                self.transport.abort()
        elif self._reads_too_slowly(now):
            self.transport.abort()
        elif self._expected == "head" and now - self.since > HEAD_SECONDS:
            if self._received:
                self.reject(408, TIMEOUT_MESSAGE.format(HEAD_SECONDS))
            else:  # browsers open spare connections
                self.transport.close()
        elif self._expected == "body" and self.flow.read_paused:
            self.since, self._received = now, 0  # the server has paused reading
        elif self._expected == "body" and now - self.since > max(BODY_SECONDS, self._received / SLOWEST_BODY):
            self.reject(408, TIMEOUT_MESSAGE.format(BODY_SECONDS))

    def _reads_too_slowly(self, now: float) -> bool:
        """Whether the client does not read its response."""
        size = self.transport.get_write_buffer_size()
        if not self.flow.write_paused:
            self._unread = None
        elif self._unread is None:
            self._unread = now, size
        elif now - self._unread[0] > UNREAD_SECONDS:
            before, self._unread = self._unread[1], (now, size)
            return before - size < SLOWEST_READER * UNREAD_SECONDS
        return False

    def reject(self, status: int, message: str) -> None:
        """Respond to an incomplete or invalid request, and close."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            content_type, body = self.error_body(status, message)
            headers = [("content-type", content_type), ("content-length", str(len(body))), ("connection", "close")]
            start = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase)
            events = (start, h11.Data(data=body), h11.EndOfMessage())
            self.transport.write(b"".join(map(self.conn.send, events)))
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Overrides uvicorn's, which fails where the application is already responding."""
        self.reject(400, msg)

    def error_body(self, status: int, message: str) -> tuple[str, bytes]:
        """Content type and content of the response that `reject` sends."""
        return "text/plain; charset=utf-8", message.encode()

    def _enforce_limit(self) -> None:
        """Of too many connections, close one of the network that has most: the longest incomplete one, else this one
        if it belongs there (rather than one that is being served), else the oldest."""
        if len(self.connections) <= MAX_CONNECTIONS:
            return
        held = Counter(one.network for one in self.connections)
        fullest = max(held.values())
        candidates = [one for one in self.connections if held[one.network] == fullest]
        incomplete = [one for one in candidates if one.incomplete]
        first = min(incomplete or candidates, key=lambda one: one.since)
        if first is self:
            self.reject(503, TOO_MANY_MESSAGE)
        else:
            self.connections.discard(first)
            first.transport.abort()


def network_of(address: str) -> str:
    """A client's IPv4 address, or its IPv6 /64, which is what providers assign to one customer."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))
