"""Connections that stay, bodies that do not come, ports that are taken: for server and page alike."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse

from chatbridge.web import connections, http_server
from chatbridge.web.http_server import HttpServer, PortInUse, listen
from chatbridge.web.request_bodies import BodiesFull, BodyReader, BodyTooLarge, too_many_json_values
from tests.patience import PATIENCE, until

SLOW = "POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"

UNKNOWN_LENGTH = {"headers": []}


async def app(scope, receive, send):
    """Reads the body of /body, sends 64 MB at /large and forever at /stream, and tells path, client and headers."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/body":
        try:
            await BodyReader(10**6).read(scope, receive, 10**6)
        except ClientDisconnect:
            return
    if scope["path"] in ("/large", "/stream"):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        part = bytes(2**20) if scope["path"] == "/large" else b"."
        for _ in range(64 if scope["path"] == "/large" else 10_000):
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(0 if scope["path"] == "/large" else 0.02)
        return
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    said = f"{scope['method']} {scope['path']} {scope['scheme']} {scope['client'][0]} {headers}"
    await PlainTextResponse(said)(scope, receive, send)


@contextmanager
def running(wrapped=app, host="127.0.0.1"):
    sockets = listen(host, [0])
    server = HttpServer(wrapped, host, 0)
    thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield server, sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def short(monkeypatch):
    """A server whose patience is short."""
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "UNREAD_SECONDS", "LINGER_SECONDS"):
        monkeypatch.setattr(connections, name, 0.3)
    with running() as found:
        yield found


@pytest.fixture
def port(short):
    return short[1]


def rest(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    connection.settimeout(20)
    parts = []
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def dribble(connection: socket.socket, data: bytes) -> bytes:
    """Send byte by byte, until the other side closes; returns what it said."""
    connection.settimeout(0.01)
    said = b""
    for place in range(4000):
        try:
            connection.sendall(data[place % len(data) :][:1])
            part = connection.recv(65536)
        except TimeoutError:
            continue
        except OSError:
            return said
        if not part:
            return said
        said += part
    raise AssertionError("it listened for ever")


class TestDeadlines:
    @pytest.mark.parametrize("sent", ["", "GET / HT", "GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
    def test_a_head_that_does_not_come(self, port, sent):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(sent.encode())
            said = rest(connection)
        assert said == b"" if not sent else b" 408 " in said

    def test_a_head_that_comes_byte_by_byte(self, port):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            assert b" 408 " in dribble(connection, b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 4000)

    def test_a_body_that_does_not_come_or_byte_by_byte(self, port):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(SLOW.encode() + b"x")
            assert b" 408 " in rest(connection)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(SLOW.replace("100", "1000000").encode())
            assert b" 408 " in dribble(connection, b"xxxx")

    def test_the_rest_of_a_body_that_nobody_wanted(self, port):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(SLOW.replace("/body", "/other").encode())
            assert b" 200 " in connection.recv(65536)
            dribble(connection, b"xxxx")

    def test_a_second_request_that_comes_byte_by_byte(self, port):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in connection.recv(65536)
            assert b" 408 " in dribble(connection, b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 4000)

    def test_an_answer_that_is_not_read(self, short, port):
        server, _ = short
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            served = until(lambda: next(iter(server.server_state.connections), None))
            until(lambda: served not in server.server_state.connections)
            assert len(rest(connection)) < 64 * 2**20

    def test_a_body_of_many_bytes_may_take_its_time(self, port, monkeypatch):
        monkeypatch.setattr(connections, "SLOWEST_BODY", 1000)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(SLOW.replace("100", "100000").encode())
            for _ in range(10):
                connection.sendall(bytes(10_000))
                time.sleep(0.1)
            assert b" 200 " in connection.recv(65536)


class TestNoRequests:
    """What is no HTTP is told so, once, and the application hears nothing of it."""

    @pytest.mark.parametrize(
        "sent",
        [
            b"\x16\x03\x01\0\xc8 hello", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"POST /body HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000,
        ],
    )  # fmt: skip
    def test_end_with_400(self, port, caplog, sent):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(sent)
            assert rest(connection).startswith(b"HTTP/1.1 400 ")
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
        assert [record for record in caplog.records if record.exc_info] == []

    def test_in_the_middle_of_an_answer(self, port, caplog):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = b"POST /stream HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
            connection.sendall(b"zz\r\n")
            rest(connection)
        assert [record for record in caplog.records if record.exc_info] == []


class TestManyConnections:
    @pytest.fixture
    def port(self, monkeypatch):
        monkeypatch.setattr(connections, "MAX_CONNECTIONS", 8)
        with running(host="0.0.0.0") as (server, port):
            yield port
            until(lambda: len(server.server_state.connections) <= 8)

    @staticmethod
    def open(stack, port, text, address="127.0.0.1", times=20):
        for _ in range(times):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), source_address=(address, 0)))
            one.sendall(text.encode())

    @pytest.mark.parametrize("sent", ["", "GET / HT", SLOW])
    def test_half_sent_requests_keep_nobody_out(self, port, sent):
        with ExitStack() as stack:
            self.open(stack, port, sent)
            for _ in range(3):
                assert httpx.get(f"http://127.0.0.1:{port}/", timeout=PATIENCE).status_code == 200

    def test_one_network_does_not_take_all(self, port):
        """Not even with requests that are answered for ever."""
        with ExitStack() as stack:
            self.open(stack, port, "GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n", "127.0.0.3", times=8)
            until(lambda: httpx.get(f"http://127.0.0.1:{port}/", timeout=PATIENCE).status_code == 200)
            stream = stack.enter_context(httpx.Client()).build_request("GET", f"http://127.0.0.1:{port}/stream")
            mine = stack.enter_context(httpx.Client()).send(stream, stream=True)
            self.open(stack, port, "GET / HT", "127.0.0.3")
            assert next(mine.iter_raw())
            mine.close()

    def test_newcomers_do_not_end_what_is_answered_in_their_network(self, port):
        with ExitStack() as stack:
            self.open(stack, port, "GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n", times=8)
            time.sleep(0.3)
            with socket.create_connection(("127.0.0.1", port)) as late:
                assert b" 503 " in rest(late)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:9::9", "2001:db8:1:2::/64"), ("fe80::1%eth0", "fe80::/64"), ("/run/socket", "/run/socket"),
    ],
)  # fmt: skip
def test_networks(address, network):
    assert connections.network_of(address) == network


class TestBodies:
    @staticmethod
    def of(*parts, end=True):
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        messages.append(
            {"type": "http.request", "body": b"", "more_body": False} if end else {"type": "http.disconnect"}
        )

        async def receive():
            return messages.pop(0)

        return receive

    def test_are_whole_or_an_error(self):
        bodies = BodyReader(100)
        assert asyncio.run(bodies.read(UNKNOWN_LENGTH, self.of(b"ab", b"", b"c"), 3)) == b"abc"
        with pytest.raises(BodyTooLarge):
            asyncio.run(bodies.read(UNKNOWN_LENGTH, self.of(b"ab", b"cd"), 3))
        with pytest.raises(BodyTooLarge):
            asyncio.run(bodies.read({"headers": [(b"content-length", b"4")]}, self.of(), 3))
        with pytest.raises(ClientDisconnect):
            asyncio.run(bodies.read(UNKNOWN_LENGTH, self.of(b"ab", end=False), 3))
        whole = bytes(100)  # nothing of the others is left
        assert asyncio.run(bodies.read(UNKNOWN_LENGTH, self.of(whole), 100)) == whole

    def test_what_stalls_makes_room_for_what_comes(self):
        async def stall(ready, over):
            yield {"type": "http.request", "body": bytes(90), "more_body": True}
            ready.set()
            await over.wait()
            yield {"type": "http.request", "body": b"", "more_body": False}

        async def both():
            bodies, ready, over = BodyReader(100), asyncio.Event(), asyncio.Event()
            stalled = asyncio.create_task(bodies.read(UNKNOWN_LENGTH, stall(ready, over).__anext__, 100))
            await ready.wait()
            assert await bodies.read(UNKNOWN_LENGTH, self.of(bytes(50), bytes(50)), 100) == bytes(100)
            over.set()
            with pytest.raises(BodiesFull):
                await stalled

        asyncio.run(both())

    def test_of_a_million_values(self):
        assert too_many_json_values(b"[" + b"{}," * 1_000_001)
        assert not too_many_json_values(b'{"text": "' + b"x" * 10**7 + b'"}')


class TestListening:
    def test_a_port_that_is_taken(self):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(PortInUse, match=rf"^127.0.0.1:{port}: address already in use; .*--port"):
                listen("127.0.0.1", [port])
            (found,) = listen("127.0.0.1", [port, 0])
            found.close()

    @pytest.mark.parametrize(
        ("host", "port"),
        [("192.0.2.1", 0), ("no such host", 0), ("127.0.0.1", 70000), ("", 0), ("x" * 300, 0), ("127.0.0.1", -1)],
    )
    def test_a_place_that_cannot_be(self, host, port):
        with pytest.raises(ValueError, match="^--(host|port) ") as caught:
            listen(host, [port])
        assert "\n" not in str(caught.value)

    def test_a_port_for_root(self, monkeypatch):
        def refuse(*_):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(http_server, "_bound", refuse)
        with pytest.raises(ValueError, match="^127.0.0.1:80: this user may not listen there; .*1024 up with --port$"):
            listen("127.0.0.1", [80])

    def test_all_addresses_of_a_name_at_one_port(self):
        sockets = listen("localhost", [0])
        assert len({one.getsockname()[1] for one in sockets}) == 1
        for one in sockets:
            one.close()
