"""Listening sockets, and uvicorn's server with connection deadlines."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterable, Sequence

import uvicorn
from starlette.types import ASGIApp

from chatbridge.web.connections import Connection


class PortInUse(ValueError):
    """Another process listens on the port."""


class HttpServer(uvicorn.Server):
    """uvicorn's server with deadlines (connections.py).

    Args:
        app: the application. host, port: for messages; it listens on the sockets that `run` gets.
        protocol: class of its connections. grace: seconds that responses may take when it stops.
    """

    def __init__(
        self, app: ASGIApp, host: str, port: int, protocol: type[Connection] = Connection, grace: int | None = None
    ):
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=protocol,
                ws="none",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,  # handled by AccessMiddleware
                timeout_graceful_shutdown=grace,
            )
        )

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second."""
        if counter % 5 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                connection.check(now)
        return await super().on_tick(counter)


def listen(host: str, ports: Iterable[int]) -> list[socket.socket]:
    """Sockets on all addresses of a host, on the first free one of the ports (0: any free port).

    Raises:
        PortInUse: all are taken. ValueError: an address of another machine, a port that may not be used.
    """
    taken: PortInUse | None = None
    for port in ports:
        try:
            return _listen(host, port)
        except PortInUse as error:
            taken = taken or error
    assert taken is not None
    raise taken


def _listen(host: str, port: int) -> list[socket.socket]:
    if not 0 <= port < 2**16:
        raise ValueError(f"--port {port}: take one from 0 (any free one) to 65535")
    if not host:
        raise ValueError("--host is empty: give an address of this machine, 0.0.0.0 for all of them")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--host {host}: is no address of this machine ({reason})") from None
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            if sockets:  # all addresses get the same port
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            sockets.append(_bound(family, address))
    except OSError as error:
        for one in sockets:
            one.close()
        raise _explained(error, host, port) from None
    return sockets


def _bound(family: int, address: Sequence) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(tuple(address))
        one.listen(2048)
    except BaseException:
        one.close()
        raise
    one.setblocking(False)
    return one


def _explained(error: OSError, host: str, port: int) -> ValueError:
    where = address_of(host, port)
    if error.errno == errno.EADDRINUSE:
        return PortInUse(f"{where}: address already in use; take another one with --port (0: any free one)")
    if error.errno == errno.EACCES:
        return ValueError(f"{where}: this user may not listen there; take a port from 1024 up with --port")
    return ValueError(f"--host {host}: is no address of this machine ({error.strerror})")


def address_of(host: str, port: int) -> str:
    """Such as ``127.0.0.1:8000`` or ``[::1]:8000``, as it stands in URLs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
