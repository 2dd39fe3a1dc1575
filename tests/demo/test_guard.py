"""The page among strangers: made-up names, malformed calls, foreign hosts and pages, one's room and another's."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import httpx
import pytest

from chatbridge.demo import conversation_store, server
from chatbridge.demo.fair_share import Allocation, Owner, choose_eviction
from chatbridge.demo.gateway import COOKIE
from chatbridge.inference.limits import MediaLimits
from chatbridge.web import connections
from chatbridge.web.access import AccessOptions
from tests.demo.tools import Browser, User, alone, page, slowly
from tests.patience import until

ASK = [{"text": "what?", "files": []}, 1, 0, 1, 0, 1, 1, -1]
TINY = MediaLimits(max_bytes=2**16, max_count=6, max_seconds=60.0, max_pixels=4_000_000)


@pytest.fixture(scope="module")
def running(tmp_path_factory, engine):
    with page(tmp_path_factory.mktemp("page"), [engine], TINY, host="0.0.0.0", max_waiting=4) as served:
        yield served


@pytest.fixture
def http(running):
    with httpx.Client(base_url=running.address, timeout=60) as client:
        yield client


def at(address: str, running) -> httpx.Client:
    """A client at another address of this machine."""
    transport = httpx.HTTPTransport(local_address=address)
    return httpx.Client(base_url=running.address.replace("localhost", "127.0.0.1"), transport=transport, timeout=60)


def said(one: str) -> dict:
    return {"data": ASK, "fn_index": 0, "session_hash": one}


class TestCalls:
    @pytest.mark.parametrize(
        ("path", "body", "status"),
        [
            ("queue/join", said("x") | {"session_hash": None}, 400),
            ("queue/join", {"data": ASK, "fn_index": 0}, 400),
            ("queue/join", said("a b"), 400),
            ("queue/join", said("x" * 65), 400),
            ("queue/join", said(["x"]), 400),
            ("queue/join", said("x") | {"fn_index": 1000}, 404),
            ("queue/join", said("x") | {"fn_index": -1}, 404),
            ("queue/join", said("x") | {"fn_index": "0"}, 404),
            ("queue/join", said("x") | {"fn_index": True}, 404),
            ("queue/join", said("x") | {"fn_index": 10**400}, 404),
            ("queue/join", said("x") | {"data": None}, 400),
            ("queue/join", said("x") | {"data": {}}, 400),
            ("queue/join", said("x") | {"data": ASK[:3]}, 400),
            ("queue/join", said("x") | {"data": [*ASK, 1]}, 400),
            ("queue/join", said("x") | {"data": ["what?", *ASK[1:]]}, 400),
            ("queue/join", said("x") | {"data": [{"text": 7}, *ASK[1:]]}, 400),
            ("queue/join", said("x") | {"data": [{"text": "", "files": "a"}, *ASK[1:]]}, 400),
            ("queue/join", said("x") | {"data": [{"text": "", "files": [{"path": 7}]}, *ASK[1:]]}, 400),
            ("queue/join", said("x") | {"data": [{"text": "", "files": [{"path": "a\0b"}]}, *ASK[1:]]}, 400),
            ("queue/join", said("x") | {"data": [{"text": "", "files": [{"path": "a" * 5000}]}, *ASK[1:]]}, 400),
            ("queue/join", said("x") | {"data": [{"text": "", "files": [{"path": "http://x/"}]}, *ASK[1:]]}, 400),
            ("queue/join", said("x") | {"data": [ASK[0], "many", *ASK[2:]]}, 400),
            ("queue/join", said("x") | {"data": [ASK[0], float("nan"), *ASK[2:]]}, 400),
            ("queue/join", said("x") | {"data": [ASK[0], float("inf"), *ASK[2:]]}, 400),
            ("queue/join", said("x") | {"data": [ASK[0], 10**400, *ASK[2:]]}, 400),
            ("queue/join", said("x") | {"data": [ASK[0], [[1]], *ASK[2:]]}, 400),
            ("queue/join", [], 400),
            ("queue/join", 7, 400),
            ("run/mute", {"data": [[0, "a"]], "session_hash": "x"}, 400),
            ("run/mute", {"data": [[-1]], "session_hash": "x"}, 400),
            ("run/edit", {"data": ASK[1:], "session_hash": "x"}, 400),
            ("run/edit", {"data": ASK[1:], "session_hash": "x", "event_data": {"index": "a", "value": "b"}}, 400),
            ("run/edit", {"data": ASK[1:], "session_hash": "x", "event_data": {"index": 0, "value": {}}}, 400),
            ("run/example", {"data": ASK[1:], "session_hash": "x", "event_data": {"index": []}}, 400),
            ("run/clear", {"data": []}, 400),
            ("run/nothing", {"data": [], "session_hash": "x"}, 404),
            ("run/js_fn", {"data": [], "session_hash": "x"}, 404),
            ("call/nothing", {"data": []}, 404),
            ("call/ask", {"data": []}, 400),
            ("call/v2/ask", {}, 404),
            ("call/v2/nothing", {}, 404),
            ("cancel", {}, 400),
            ("cancel", {"session_hash": 1, "fn_index": 0, "event_id": "a"}, 400),
            ("reset", {"event_id": None}, 400),
            ("upload", {}, 400),
        ],
    )  # fmt: skip
    def test_that_the_page_would_not_make(self, http, capfd, path, body, status):
        found = http.post(f"gradio_api/{path}", content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert found.status_code == status, found.text
        told = capfd.readouterr()
        assert "Traceback" not in told.err + told.out + found.text

    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"\xff\xfe{}", b"[" * 5000, b'{"data":' * 3000, "{}".encode("utf-16"), b"NaN", b"{},{}",
         b'{"data": [1' + b"0" * 5000 + b"]}", b"[" + b"{}," * 1_000_001],
    )  # fmt: skip
    def test_that_are_no_calls(self, http, capfd, body):
        for path in ("queue/join", "run/clear", "call/ask", "cancel"):
            found = http.post(f"gradio_api/{path}", content=body, headers={"Content-Type": "application/json"})
            assert found.status_code in (400, 413), (path, found.text)
        assert "Traceback" not in capfd.readouterr().err

    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("queue/data", 400), ("queue/data?session_hash=", 400), ("queue/data?session_hash=nobody", 404),
            ("queue/data?session_hash=a%00b", 400), ("queue/join", 405), ("heartbeat/", 404), ("heartbeat/a/b", 404),
            ("heartbeat/%00", 404), ("call/ask", 405), ("call/ask/nothing", 404), ("upload_progress", 400),
            ("upload_progress?upload_id=a/b", 400), ("file/demo.py", 404), ("stream/x", 404), ("queue", 404), ("", 404),
        ],
    )  # fmt: skip
    def test_for_what_is_not_there(self, http, capfd, path, status):
        assert http.get(f"gradio_api/{path}").status_code == status
        assert "Traceback" not in capfd.readouterr().err

    @pytest.mark.parametrize("path", ["?page=nowhere", "?deep_link=../x", "config?page=nowhere", "config?deep_link=x"])
    def test_with_questions_that_nobody_asks(self, http, path):
        assert http.get(path).status_code == 200

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "/", "./", "%2e", "~", "%00", "demo.py", "a" * 5000, "//x/y", "C:/x"]
    )
    def test_no_file_is_told_where_the_page_runs(self, http, name):
        found = http.get(f"gradio_api/file={name}")
        assert found.status_code == 403 and str(Path.cwd()) not in found.text

    @pytest.mark.parametrize(
        "path", ["assets/" + "a" * 5000, "assets/%00", "assets/..%2f..%2fx", "static/%ff", "nowhere"]
    )
    def test_what_is_not_there(self, http, capfd, path):
        assert http.get(path).status_code in (403, 404)
        assert "Traceback" not in capfd.readouterr().err

    def test_parts_of_files(self, running, http, files):
        (path,) = http.post("gradio_api/upload", files={"files": files["a.png"].open("rb")}).json()
        whole = http.get(f"gradio_api/file={path}")
        assert whole.content == files["a.png"].read_bytes() and whole.headers["content-type"] == "image/png"
        for asked, status in (("bytes=0-3", 206), ("bytes=5-3", 400), ("bytes=a-b", 400), ("bytes=999999-", 416)):
            assert http.get(f"gradio_api/file={path}", headers={"Range": asked}).status_code == status
        (path,) = http.post("gradio_api/upload", files={"files": ("x.html", b"<script>")}).json()
        shown = http.get(f"gradio_api/file={path}").headers
        assert shown["content-type"] == "application/octet-stream"
        assert shown["content-disposition"].startswith("attachment")

    @pytest.mark.parametrize(
        "head",
        [b'form-data; name="files"', b'form-data; filename="a.png"', b"", b'form-data; name="files"; filename="/"',
         b'form-data; name="files"; filename=".."', b'form-data; name="files"; filename="a\0b"', b"\xff\xfe"],
    )  # fmt: skip
    @pytest.mark.parametrize("mark", ["xyz", ""])
    def test_uploads_that_are_none(self, running, http, capfd, head, mark):
        line = b"Content-Disposition: " + head + b"\r\n" if head else b""
        body = b"--%b\r\n%b\r\nabc\r\n--%b--\r\n" % (mark.encode(), line, mark.encode())
        kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
        found = http.post("gradio_api/upload", content=body, headers=kind)
        assert found.status_code in (200, 400) and "Traceback" not in capfd.readouterr().err
        for path in found.json() if found.status_code == 200 else ():
            assert Path(path).is_relative_to(running.conversations.store.root / "uploads")

    def test_half_an_emoji_is_asked_about_nevertheless(self, engine, running):
        browser = Browser(running, "emoji")
        join = "gradio_api/queue/join"
        body = json.dumps(said("emoji")).replace("what?", "what \\ud83d?")
        assert browser.http.post(join, content=body, headers={"Content-Type": "application/json"}).status_code == 200
        assert "what \ufffd?" in str(browser.last()["data"][0][0])
        browser.close()

    def test_one_user_has_half_of_the_places(self, engine, running):
        first, second = Browser(running, "many"), Browser(running, "one")
        assert dict(first.http.cookies) != dict(second.http.cookies)
        with slowly(engine, 0.1):
            long = [ASK[0], 40, *ASK[2:]]
            statuses = []
            for number in range(6):  # two are answered, two may wait
                body = said(f"many-{number}") | {"data": long}
                statuses.append(first.http.post("gradio_api/queue/join", json=body).status_code)
                until(lambda number=number: number > 1 or running.conversations.find(f"many-{number}"))  # noqa: B023
            assert statuses == [200, 200, 200, 200, 503, 503]
            assert second.ask("and me?").status_code == 200
            for number in range(4):
                running.conversations.of(f"many-{number}").stop()
        assert second.last() is not None


class TestShares:
    def test_who_goes_first(self):
        a, b, c = Owner("1", "a"), Owner("1", "b"), Owner("2", "c")

        def hold(*things, asker, size=1):
            gone = choose_eviction([Allocation(owner, size, rank, list) for owner, size, *rank in things], asker, size)
            return None if gone is None else (gone.owner, *gone.rank)

        assert hold((a, 1, 2), (a, 1, 1), (a, 1, 3), (c, 1, 0), asker=c) == (a, 1)  # who holds most, the oldest of it
        assert hold((a, 1, 1), (b, 1, 0), (b, 1, 7), (c, 1, 5), asker=c) == (b, 0)  # of the network that holds most
        assert hold((a, 2, 1), (c, 5, 9), (c, 5, 8), asker=c, size=1) == (c, 8)  # one's own, though it is younger
        assert hold((a, 1, 9), (b, 2, 0), asker=a) == (a, 9)  # where both would hold as much, one's own
        assert hold((b, 1, 0), asker=a) == (b, 0)
        assert choose_eviction([Allocation(a, 9, (0,), None)], c, 1) is None  # what is in use stays
        others = [Allocation(c, 1, (0,), list), Allocation(a, 9, (0,), None)]
        assert choose_eviction(others, a, 1) is None  # nobody who holds less

    @pytest.mark.parametrize("own", [False, True])
    def test_made_up_pages_end_nobodys_conversation(self, engine, running, monkeypatch, own):
        """Neither from elsewhere nor from the user's own address, where the browser's cookie tells them apart."""
        monkeypatch.setattr(conversation_store, "MAX_CONVERSATIONS", 8)
        victim = User(running)
        assert victim.ask("what is it?").answer
        with at("127.0.0.1" if own else "127.0.0.2", running) as attacker:
            for number in range(12):
                body = {"data": [], "session_hash": f"invented-{own}-{number}"}
                assert attacker.post("gradio_api/run/clear", json=body).status_code == 200
        assert len(running.conversations) == 8
        expected = alone(engine, ("what is it?", []), ("why?", []))[1]
        assert victim.ask("why?").answer == expected

    def test_uploads_of_one_do_not_fill_it_for_all(self, running, files, monkeypatch):
        monkeypatch.setattr(running.conversations.store, "max_bytes", 8 * 2**16)
        store, data = running.conversations.store, files["a.png"].read_bytes()
        with at("127.0.0.3", running) as victim, at("127.0.0.4", running) as attacker:
            (mine,) = victim.post("gradio_api/upload", files={"files": ("a.png", data)}).json()
            for _ in range(12):  # of which 8 would fill it
                found = attacker.post("gradio_api/upload", files={"files": ("x.bin", bytes(2**16 - 1000))})
                assert found.status_code == 200
            assert store.usage().total() <= store.max_bytes
            (another,) = victim.post("gradio_api/upload", files={"files": ("b.png", data)}).json()
            assert Path(mine).exists() and Path(another).exists()
            for upload in list(store.uploads.values()):
                store.drop(upload)

    def test_uploads_that_claim_much_and_do_not_come_keep_no_room(self, running, files):
        data = files["a.png"].read_bytes()
        head = (
            "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        )
        port = httpx.URL(running.address).port
        sockets = [socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.5", 0)) for _ in range(20)]
        try:
            for one in sockets:
                one.sendall(f"{head}Content-Length: 300000\r\n\r\n--x\r\n".encode())
            with at("127.0.0.6", running) as user:
                assert user.post("gradio_api/upload", files={"files": ("a.png", data)}).status_code == 200
        finally:
            for one in sockets:
                one.close()
        until(
            lambda: (
                not [one for one in running.conversations.store.uploads.values() if one.owner.network == "127.0.0.5"]
            )
        )

    def test_a_cookie_for_browsers(self, http):
        (cookie,) = http.get("/").headers.get_list("set-cookie")
        assert cookie.startswith(f"{COOKIE}=") and "HttpOnly; SameSite=Lax" in cookie and "Secure" not in cookie
        assert "set-cookie" not in http.get("/").headers  # it has one
        for wrong in ("x", "ü" * 32, "a" * 33, '"'):
            client = httpx.Client(headers={"Cookie": f"{COOKIE}={wrong}".encode()})
            assert "set-cookie" in client.get(f"{http.base_url}config").headers

    def test_what_pages_are_told_is_kept_while_it_is_awaited(self, monkeypatch):
        monkeypatch.setattr(server, "MAX_MESSAGE_QUEUES", 3)
        busy = {"mine": {"event"}}
        boxes = server._MessageQueues(busy)
        for name in ("mine", "a", "b", "c", "d"):
            boxes[name] = name
        assert list(boxes) == ["mine", "c", "d"]


class TestHostsAndPages:
    def test_other_hosts_and_pages_are_refused(self, http, running):
        own = str(http.base_url).rstrip("/")
        for host in ("evil.example", "evil.example:7860", "localhost.evil.example"):
            for path in ("/", "/config", "/gradio_api/info", "/nowhere"):
                refused = http.get(path, headers={"Host": host})
                assert refused.status_code == 400 and "--allowed-host" in refused.text
        for origin in ("http://evil.example", "null", "http://localhost:3000"):
            body = {"data": [], "session_hash": "foreign"}
            assert http.post("gradio_api/run/clear", json=body, headers={"Origin": origin}).status_code == 403
            assert http.post("gradio_api/upload", files={"files": b"x"}, headers={"Origin": origin}).status_code == 403
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            for found in (
                http.options("gradio_api/queue/join", headers=asked), http.get("/config", headers=asked),
                http.get("/", headers=asked), http.get("gradio_api/heartbeat/", headers=asked),
            ):  # fmt: skip
                assert not [name for name in found.headers if name.startswith("access-control")]
        body = {"data": [], "session_hash": "ours"}
        assert http.post("gradio_api/run/clear", json=body, headers={"Origin": own}).status_code == 200
        assert running.conversations.find("foreign") is None

    def test_half_sent_requests_end(self, running, monkeypatch):
        monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
        with socket.create_connection(("127.0.0.1", httpx.URL(running.address).port)) as connection:
            connection.sendall(b"GET / HT")
            connection.settimeout(20)
            assert b" 408 " in connection.recv(1000)

    @pytest.mark.parametrize("takes_off", [True, False])
    def test_behind_a_proxy(self, tmp_path, engine, files, takes_off):
        access = AccessOptions(root_path="/chat", allowed_hosts=["pub.example"], trusted_proxies=["127.0.0.1"])
        with page(tmp_path, [engine], access=access) as running:
            headers = {"Host": "127.0.0.1", "X-Forwarded-Host": "pub.example", "X-Forwarded-Proto": "https"}
            headers["X-Forwarded-For"] = "192.0.2.7"
            base = running.address + ("" if takes_off else "chat/")
            with httpx.Client(base_url=base, headers=headers, timeout=60) as proxy:
                found = proxy.get("config")
                assert found.json()["root"] == "https://pub.example/chat"
                assert "Path=/chat/" in found.headers["set-cookie"] and "Secure" in found.headers["set-cookie"]
                (path,) = proxy.post("gradio_api/upload", files={"files": files["a.png"].open("rb")}).json()
                (upload,) = running.conversations.store.uploads.values()
                assert upload.owner.network == "192.0.2.7"
                assert proxy.get(f"gradio_api/file={path}").status_code == 200
                body = {"data": [], "session_hash": "mine"}
                ours = proxy.post("gradio_api/run/clear", json=body, headers={"Origin": "https://pub.example"})
                assert ours.status_code == 200
