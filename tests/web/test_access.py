"""Names that are not ours, pages of other sites, proxies and their paths: for server and page alike."""

from __future__ import annotations

import socket
from contextlib import contextmanager

import httpx
import pytest
from starlette.responses import PlainTextResponse

from chatbridge.web.access import AccessMiddleware, AccessOptions, KnownHosts
from tests.web.test_connections import app, running


class TestNames:
    @pytest.mark.parametrize(
        ("bound", "known", "unknown"),
        [
            ("127.0.0.1", "localhost LOCALHOST:8000 localhost. 127.0.0.1:80 127.9.9.9 [::1]:8000 [::ffff:127.0.0.1]",
             "evil.example localhost.evil.example 127.0.0.1.evil.example 192.0.2.1 0.0.0.0 [::] evil@localhost "
             "localhost:80:80 localhost:99999999 localhost/x [::1 ::1] 127.0.0.1,evil.example ü.example"),
            ("192.0.2.1", "192.0.2.1:8000 localhost", "192.0.2.2 evil.example"),
            ("0.0.0.0", "192.0.2.1 [2001:db8::1]:8000 localhost", "evil.example 192.0.2.1.nip.example"),
            ("::", "192.0.2.1 [2001:db8::1]", "evil.example"),
            ("chat.lan", "chat.lan:8000 Chat.LAN", "other.lan"),
        ],
    )  # fmt: skip
    def test_of_the_place_that_is_bound(self, bound, known, unknown):
        names = KnownHosts(bound, AccessOptions())
        assert [name for name in known.split() if not names.allow(name)] == []
        assert [name for name in ["", " ", *unknown.split()] if names.allow(name)] == []

    def test_of_this_machine(self):
        assert KnownHosts("0.0.0.0", AccessOptions()).allow(socket.gethostname())
        assert socket.gethostname() == "localhost" or not KnownHosts("127.0.0.1", AccessOptions()).allow(
            socket.gethostname()
        )

    def test_that_are_allowed(self):
        access = AccessOptions(
            allowed_hosts=["Chat.example.org", "*.lab.example", "192.0.2.9"], root_path="https://pub.example/c"
        )
        names = KnownHosts("127.0.0.1", access)
        for name in ("chat.example.org:443", "a.lab.example", "a.b.lab.example", "192.0.2.9", "pub.example"):
            assert names.allow(name), name
        for name in ("example.org", "lab.example", "evil-lab.example", "xchat.example.org"):
            assert not names.allow(name), name
        assert KnownHosts("127.0.0.1", AccessOptions(allowed_hosts=["*"])).allow("anything.example")
        names.add("later.example")
        assert names.allow("later.example:80")

    def test_of_pages(self):
        names = KnownHosts("127.0.0.1", AccessOptions(allowed_hosts=["chat.example.org"]))
        assert names.allow_origin("http://localhost:7860", "localhost:7860")
        assert names.allow_origin("https://pub.example", "pub.example:443")
        assert names.allow_origin(
            "https://chat.example.org", "127.0.0.1:7860"
        )  # a proxy that passes its own address on
        for origin in ("http://localhost:3000", "http://evil.example", "null", "", "file://", "http://localhost",
                       "http://localhost:7860.evil.example", "localhost:7860", "chrome-extension://abc"):  # fmt: skip
            assert not names.allow_origin(origin, "localhost:7860"), origin

    @pytest.mark.parametrize(
        "wrong",
        [
            {"allowed_hosts": ["http://x.org"]}, {"allowed_hosts": ["x.org:80"]}, {"allowed_hosts": ["x.org/c"]},
            {"allowed_hosts": [""]}, {"allowed_hosts": ["a*"]}, {"root_path": "chat"}, {"root_path": "/a b"},
            {"root_path": "ftp://x.org"}, {"root_path": "/../etc?"}, {"trusted_proxies": ["proxy.lan"]},
            {"trusted_proxies": ["10.0.0.1/8"]},
        ],
    )  # fmt: skip
    def test_that_are_none(self, wrong):
        with pytest.raises(ValueError, match="^--(allowed-host|root-path|trusted-proxy) .*give"):
            AccessOptions(**wrong)


class TestEntrance:
    @staticmethod
    @contextmanager
    def client(same_site_only=True, **access):
        reached = AccessOptions(**access)
        wrapped = AccessMiddleware(
            app,
            KnownHosts("127.0.0.1", reached),
            reached,
            lambda status, text: PlainTextResponse(text, status),
            same_site_only,
        )
        with running(wrapped) as (_, port), httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            yield client

    def test_hosts_and_origins(self):
        with self.client(allowed_hosts=["chat.example.org"]) as client:
            here = str(client.base_url).rstrip("/")
            for host in ("evil.example", "", "evil.example:80", "\xff"):
                refused = client.get("/", headers={"Host": host.encode("latin-1")})
                assert refused.status_code == 400 and "--allowed-host" in refused.text
            assert client.get("/", headers={"Host": "chat.example.org"}).status_code == 200
            for origin, status in ((here, 200), ("https://chat.example.org", 200), ("http://evil.example", 403)):
                for method in ("POST", "DELETE", "OPTIONS"):
                    found = client.request(method, "/", headers={"Origin": origin})
                    assert found.status_code == status and "access-control-allow-origin" not in found.headers
                assert "origin" not in client.get("/", headers={"Origin": origin}).text
        with self.client(same_site_only=False) as client:
            assert client.post("/", headers={"Origin": "http://evil.example"}).status_code == 200

    def test_what_proxies_say_is_believed_of_those_that_are_trusted(self):
        said = {"X-Forwarded-For": "192.0.2.5", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "chat.example.org"}
        with self.client(allowed_hosts=["chat.example.org"]) as client:
            plain = client.get("/", headers=said).text
            assert "http 127.0.0.1 " in plain and "forwarded" not in plain
        with self.client(allowed_hosts=["chat.example.org"], trusted_proxies=["127.0.0.0/8"]) as client:
            believed = client.get("/", headers=said).text
            assert "https 192.0.2.5 " in believed and "'host': 'chat.example.org'" in believed
            assert client.get("/", headers=said | {"X-Forwarded-Host": "evil.example"}).status_code == 400

    def test_a_path_below_that_of_a_proxy(self):
        for root in ("/chat", "/chat/", "https://pub.example/chat"):
            with self.client(root_path=root) as client:
                assert client.get("/chat/config").text.startswith("GET /config ")
                assert client.get("/config").text.startswith("GET /config ")  # the proxy has taken it off
                assert client.get("/chatter").text.startswith("GET /chatter ")
                assert client.get("/chat").headers["location"] == "/chat/"
