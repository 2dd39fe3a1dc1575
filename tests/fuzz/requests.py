"""What is sent to the server and to the page, both of them listening on this machine with a tiny model."""

from __future__ import annotations

import base64
import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from chatbridge.inference import ChatSession
from tests.demo.tools import SMALL, Browser, page
from tests.fuzz.damage import ODD, as_json, damaged, damaged_tree
from tests.fuzz.media_files import KINDS
from tests.fuzz.target import Refused, Step, Target
from tests.fuzz.weights import JSON_SIGNS
from tests.inference.tools import SHORT, make_engine
from tests.serving import tools as serving

ANSWERED = 15.0
"""Seconds in which a good request is answered."""

HEARD = 1.5
"""Seconds that a client waits before it hangs up: what is damaged may be waited for in vain, by both sides."""

VALUES: tuple[Any, ...] = (
    *ODD, "user", "assistant", "system", "tool", "tiny", "word " * 5000, [{"type": "text", "text": "a"}],
    {"type": "text"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}, {"url": "file:///etc/passwd"}, "data:,",
    "data:;base64,AAAA",
    "data:image/png;base64," + "A" * 1000, "file://localhost/a.png", "a.png", "../a.png", "//x/a.png",
    "file://%2e%2e/a.png", 1e-320,
    200, 2**53, [""] * 5, ["</s>"], {"include_usage": 1}, {"type": "json_object"}, {"path": "/etc/passwd"},
    {"path": ""},
    {"path": "a.png", "meta": {"_type": "gradio.FileData"}, "url": "http://127.0.0.1:9/x"}, {"__type__": "update"},
)  # fmt: skip

HEADERS = (
    b"Content-Length: 0", b"Content-Length: -1", b"Content-Length: 99999999999", b"Content-Length: x",
    b"Content-Length: 3\r\nContent-Length: 4",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Content-Encoding: gzip", b"Content-Type: text/plain",
    b"Content-Type:",
    b"Content-Type: application/json; charset=utf-16", b"Content-Type: multipart/form-data",
    b"Content-Type: multipart/form-data; boundary=",
    b"Authorization: Bearer \xff", b"Authorization:", b"Authorization: Basic x", b"Host: example.org", b"Host:",
    b"Host: [::1", b"Host: a b",
    b"Origin: http://example.org", b"Origin: null", b"Origin: \xff", b"Expect: 100-continue",
    b"Upgrade: websocket\r\nConnection: Upgrade",
    b"X: " + b"a" * 70_000, b"Range: bytes=-1", b"Range: bytes=9-1,x", b"Cookie: \xe9=\xff", b"Accept: \0",
    b"no colon here", b": x", b" folded: x",
    b"X-Forwarded-For: x\r\nX-Forwarded-Proto: gopher", b"Accept-Language: ;;q=9", b"Referer: \xff",
)  # fmt: skip

PLACES = (
    "/", "/health", "/v1/models", "/v1/models/tiny", "/v1/models/\ud83d", "/v1/models/%00", "/v1/models/..%2f",
    "/v1/chat/completions",
    "/v1/completions", "//", "/%", "/%ff", "/\xff", "/a?b=%zz", "/" + "a" * 9000, "*", "http://example.org/",
    "/v1/../health", "/health;x=1",
)  # fmt: skip

PAGE_PLACES = (
    "/", "/config", "/theme.css", "/gradio_api/info", "/gradio_api/startup-events", "/gradio_api/queue/status",
    "/gradio_api/app_id",
    "/gradio_api/file=", "/gradio_api/file=.", "/gradio_api/file=/etc/passwd", "/gradio_api/file=%00",
    "/gradio_api/file=\ud83d",
    "/gradio_api/file=" + "a" * 5000, "/gradio_api/file=../../x", "/gradio_api/file=http://127.0.0.1:9/",
    "/assets/../../x", "/assets/%00",
    "/static/" + "x" * 300, "/assets/nothing.js", "/gradio_api/queue/data", "/gradio_api/queue/data?session_hash=%ff",
    "/gradio_api/call/ask/nothing",
    "/gradio_api/upload_progress?upload_id=x", "/gradio_api/heartbeat", "/gradio_api/call/ask", "/gradio_api/run/ask",
    "/gradio_api/proxy=x",
    "/gradio_api/upload", "/gradio_api/reset", "/gradio_api/cancel", "/gradio_api/queue/join",
    "/gradio_api/stream/a/b/0", "/gradio_api/component_server",
)  # fmt: skip


class Requests(Target):
    def __init__(self, folder: Path):
        super().__init__(folder)
        files = {kind: dict(sorted(make().items())) for kind, make in KINDS.items()}
        self.files = {kind: list(named.values()) for kind, named in files.items()}
        media = folder / "media"
        media.mkdir()
        (media / "a.png").write_bytes(files["image"]["colour.png"])
        engine = make_engine(folder / "model")
        session = ChatSession(engine, SHORT)
        session.say("what is it?", media=[media / "a.png"])
        self.conversation = json.dumps(session.export(embed=True)).encode()
        self.served = serving.Served(engine, folder=media, limits=SMALL, max_body=2_000_000, parallel=1, queue=2)
        self._open = ExitStack()
        running = self._open.enter_context(page(folder / "page", [engine], parallel=1))
        self.page = urlsplit(running.address).port
        self.browser = Browser(running, "somebody")

    def trial(self, rng: random.Random, folder: Path) -> Iterator[Step]:
        if rng.random() < 0.6:
            port, request = self.served.server.port, self._to_server(rng)
            yield "ask the server", partial(_ask, port, request)
            yield "and again", partial(_well, port, b"POST", "/v1/chat/completions", json.dumps(serving.ASKED).encode())
        elif rng.random() < 0.5:
            yield "ask the page", partial(_ask, self.page, self._to_page(rng))
            yield "and again", partial(_well, self.page, b"GET", "/config", b"")
        else:
            data = self._event(rng)
            yield "an event of the page", partial(self._join, data)
            yield "and again", partial(_well, self.page, b"GET", "/config", b"")

    def _to_server(self, rng: random.Random) -> bytes:
        asked = self._question(rng)
        body = as_json(damaged_tree(asked, rng, VALUES) if rng.random() < 0.6 else asked, rng)
        if rng.random() < 0.2:
            body = rng.choice((damaged, _with_sign))(body, rng)
        place = "/v1/chat/completions" if rng.random() < 0.85 else rng.choice(PLACES)
        return _request(rng, self.served.server.port, place, body)

    def _question(self, rng: random.Random) -> dict[str, Any]:
        """What a client might ask, its media damaged perhaps."""
        user, text, image = serving.user, serving.text, serving.image
        kind = rng.choice(list(self.files))
        data = rng.choice(self.files[kind])
        data = damaged(data, rng, self.files["image"]) if rng.random() < 0.6 else data
        url = f"data:{kind}/x;base64,{base64.b64encode(data).decode()}"
        shown = {
            "image": image(url),
            "audio": serving.sound(data),
            "video": serving.video(url, sound=rng.random() < 0.5),
        }[kind]
        talk = rng.choice((
            [user("what?")], [user("what?", shown)], [user(shown)], [user("what?", shown)],
            [user(text("what?"), image("a.png"))],
            [user("what?"), serving.assistant("this"), user("and that?")],
        ))  # fmt: skip
        more = rng.choice((
            {}, {}, {"stream": True, "stream_options": {"include_usage": True}},
            {"temperature": 0.7, "top_p": 0.9, "seed": 3},
            {"stop": ["x", "\n"], "num_beams": 2},
            {"max_completion_tokens": 3, "presence_penalty": 0.0, "n": 1, "user": "me"},
        ))  # fmt: skip
        return {**serving.ASKED, "max_tokens": 3, "messages": talk, **more}

    def _to_page(self, rng: random.Random) -> bytes:
        place, body = rng.choice(PAGE_PLACES), b""
        if rng.random() < 0.4:
            body = as_json(
                damaged_tree({"data": self._asked(rng), "fn_index": 0, "session_hash": "x"}, rng, VALUES), rng
            )
        elif rng.random() < 0.4:
            place, data = "/gradio_api/upload", damaged(rng.choice(self.files["image"]), rng)
            name = rng.choice(
                (b"a.png", b"../../a.png", b"", b"\xff.png", b"n" * 300, b"a\0b.png", b".", b"CON", b"/etc/x")
            )
            body = (
                b'--b\r\nContent-Disposition: form-data; name="files"; filename="'
                + name
                + b'"\r\n\r\n'
                + data
                + b"\r\n--b--\r\n"
            )
            body = damaged(body, rng) if rng.random() < 0.5 else body
            return _request(rng, self.page, place, body, b"multipart/form-data; boundary=b")
        return _request(rng, self.page, place, body)

    def _asked(self, rng: random.Random) -> list[Any]:
        file = {"path": rng.choice(("a.png", "", ".", "/etc/passwd", "\0")), "meta": {"_type": "gradio.FileData"}}
        return [{"text": "what?", "files": rng.choice(([], [], [file]))}, 8, 0, 1, 0, 1, 1, -1]

    def _event(self, rng: random.Random) -> dict[str, Any]:
        """An event of the page with odd values, perhaps with a user's file among them."""
        name = rng.choice(("ask", "ask", "ask", "ask", *self.browser.functions))
        asked = self._asked(rng)
        if rng.random() < 0.4:
            sent = rng.choice(self.files[rng.choice(list(self.files))]) if name == "ask" else self.conversation
            answer = self.browser.upload(("a.json", damaged(sent, rng) if rng.random() < 0.8 else sent))
            if answer.status_code == 200:
                asked[0]["files"] = [{"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}]
        data: Any = {"ask": asked, "mute": [[0]], "load": asked[0]["files"][:1] or [None]}.get(name, asked[1:])
        data = [] if name in ("stop", "clear", "save", "clear_1") else data
        data = damaged_tree(data, rng, VALUES) if rng.random() < 0.7 else data
        call = {"data": data, "fn_index": self.browser.functions[name], "session_hash": self.browser.name}
        return damaged_tree(call, rng, VALUES, 1) if rng.random() < 0.2 else call

    def _join(self, call: dict[str, Any]) -> None:
        answer = self.browser.http.post(
            "gradio_api/queue/join",
            content=as_json(call, random.Random(0)),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code < 500, f"status {answer.status_code}\n{answer.text[:2000]}"
        if answer.status_code >= 400:
            raise Refused(answer.text[:300])
        if call.get("session_hash") == self.browser.name:
            self.browser.last()

    def close(self) -> None:
        self.browser.close()
        self._open.close()
        self.served.close()


def _with_sign(body: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + rng.choice(JSON_SIGNS).encode() + body[at:]


def _request(rng: random.Random, port: int, place: str, body: bytes, kind: bytes = b"application/json") -> bytes:
    """The bytes of a request; a third of them with an odd header, some not HTTP any more."""
    method = (
        b"POST"
        if body and rng.random() < 0.95
        else rng.choice((b"GET", b"GET", b"HEAD", b"PUT", b"OPTIONS", b"G\xffT", b"DELETE"))
    )
    headers = [
        b"Host: 127.0.0.1:%d" % port,
        b"Connection: close",
        b"Content-Type: " + kind,
        b"Content-Length: %d" % len(body),
    ]
    if rng.random() < 0.3:
        odd = rng.choice(HEADERS)
        name = odd.split(b":")[0]
        headers = [header for header in headers if not header.startswith(name)] + [odd]
    target = place.encode("utf-8", "surrogatepass").replace(b" ", b"%20")
    request = b"\r\n".join([method + b" " + target + b" HTTP/1.1", *headers, b"", b""]) + body
    return damaged(request, rng) if rng.random() < 0.1 else request


def _ask(port: int, request: bytes) -> None:
    """Send something and hang up; most of it is answered at once."""
    status, answer = _exchange(port, request, HEARD)
    assert status < 500 or status == 503, f"status {status}\n{answer[:2000]!r}"
    if status >= 400:
        raise Refused(answer[:500].decode("latin-1"))


def _well(port: int, method: bytes, place: str, body: bytes) -> None:
    """A good request is answered as ever."""
    head = b"%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n" % (method, place.encode(), port)
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    end = time.monotonic() + ANSWERED
    while (found := _exchange(port, head + body))[0] == 429 and time.monotonic() < end:
        time.sleep(0.1)  # an answer that nobody reads is still being ended
    assert found[0] == 200, f"a good request after it: status {found[0]}\n{found[1][:2000]!r}"


def _exchange(port: int, request: bytes, patience: float = ANSWERED) -> tuple[int, bytes]:
    """Status and all that was answered; 400 where there was no word, because it waits for the rest or has closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as line:
        answer = b""
        try:
            line.sendall(request)
            while part := line.recv(1 << 16):
                answer += part
        except (ConnectionError, TimeoutError):
            pass
    words = answer.split(b" ", 2)
    return (int(words[1]) if answer.startswith(b"HTTP/1.1 ") else 400), answer
