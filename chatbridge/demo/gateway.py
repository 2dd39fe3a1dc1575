"""ASGI middleware in front of gradio: allowed routes, owners, limits on requests, security headers."""

from __future__ import annotations

import mimetypes
import secrets
import time
from urllib.parse import parse_qs, urlencode

import gradio as gr
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatbridge.demo.api_calls import NAME, CallValidator, RejectedCall
from chatbridge.demo.conversation_store import ConversationStore
from chatbridge.demo.fair_share import OWNER, Owner
from chatbridge.demo.uploads import UploadHandler
from chatbridge.web.connections import network_of
from chatbridge.web.request_bodies import BodiesFull, BodyReader, BodyTooLarge

ARRIVAL_TIME = "chatbridge.arrived"
"""Key of a request's scope that holds when it arrived (`time.monotonic`)."""

MAX_CALL = 32 * 2**20
"""Bytes of a request other than an upload."""

MAX_BODIES = 16
"""Memory for requests that are being received, in requests of the largest size."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""Nothing is loaded from other sites, which gradio's scripts would do."""

HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

COOKIE = "chatbridge-visitor"

API = "/gradio_api/"
PAGE = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
FILES = ("/assets/", "/static/")
MAX_FILE_NAME = 255
PUBLIC_ROUTES = ("app_id", "info", "openapi.json", "queue/status", "startup-events", "theme.css", "user")
"""Gradio's routes that everybody may read. Further ones edit the program, fetch addresses or start FFmpeg on what they
are sent."""


class PageGateway:
    """Wraps gradio's application (ASGI).

    Args:
        app: gradio's. page: whose events are called. conversations: get to know when a page is opened or closed.
        max_waiting: questions that may wait, half of them of one owner.
        prefix: the path under which a proxy serves the page, for the cookie.
    """

    def __init__(
        self, app: ASGIApp, page: gr.Blocks, conversations: ConversationStore, max_waiting: int, prefix: str = ""
    ):
        self.app, self.page, self.conversations, self.prefix = app, page, conversations, prefix
        self._share = -(-max_waiting // 2)
        self._calls, self._uploads = CallValidator(page), UploadHandler(conversations)
        self._bodies = BodyReader(MAX_BODIES * MAX_CALL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        cookie = _cookie(scope)
        network = network_of(scope["client"][0]) if scope["client"] else ""
        scope[ARRIVAL_TIME], scope[OWNER] = time.monotonic(), Owner(network, cookie)
        new_cookie = None if cookie or scope["path"] not in PAGE[:2] else self._new_cookie(scope)
        send = _with_headers(send, new_cookie)
        try:
            await self._route(scope, receive, send)
        except RejectedCall as error:
            await JSONResponse({"detail": error.reason}, error.status)(scope, receive, send)
        except BodyTooLarge:
            await _too_large(MAX_CALL)(scope, receive, send)
        except BodiesFull:
            answer = JSONResponse({"detail": "too much is being sent to this server; try again later"}, 503)
            await answer(scope, receive, send)
        except ClientDisconnect:
            await Response(status_code=499)(scope, receive, send)  # nobody reads it

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, query, scope["query_string"] = scope["path"], scope["query_string"], b""
        if not path.startswith(API):
            if path not in PAGE and not (path.startswith(FILES) and len(path) < MAX_FILE_NAME):
                raise RejectedCall(404, "not here")
            _only(scope, "GET", "HEAD")
            await self.app(scope, receive, send)
            return
        name = path.removeprefix(API)
        if name.startswith("file="):
            _only(scope, "GET", "HEAD")
            await self._file(name.removeprefix("file="))(scope, receive, send)
            return
        first, _, rest = name.partition("/")
        if name in PUBLIC_ROUTES:
            _only(scope, "GET")
            await self.app(scope, receive, send)
        elif first == "heartbeat":
            _only(scope, "GET")
            await self._heartbeat(rest, scope, receive, send)
        elif scope["method"] == "GET":
            self._stream(name, query, scope)
            await self.app(scope, receive, send)
        elif name == "upload":
            _only(scope, "POST")
            upload_id = _query_name(query, "upload_id") if b"upload_id" in query else None
            await (await self._uploads.take(scope, receive, upload_id))(scope, receive, send)
        else:
            _only(scope, "POST")
            body = await self._call(name, scope, receive)
            await self.app(scope, _replay(body, receive), send)

    def _file(self, path: str) -> Response:
        """A file of the page's folder; types that a browser could execute are sent as downloads."""
        file = self.conversations.store.find(path)
        if file is None:
            raise RejectedCall(403, "only files of this page")
        media_type = mimetypes.guess_type(file.name)[0] or ""
        inline = media_type.startswith(("image/", "audio/", "video/")) and media_type != "image/svg+xml"
        return FileResponse(
            file,
            media_type=media_type if inline else "application/octet-stream",
            filename=file.name,
            content_disposition_type="inline" if inline else "attachment",
        )

    async def _heartbeat(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        """A request that lasts as long as the page is open."""
        if not NAME.fullmatch(name):
            raise RejectedCall(404, "there is no such page")
        self.conversations.page_opened(name)
        try:
            await self.app(scope, receive, send)
        finally:
            self.conversations.page_closed(name)

    def _stream(self, name: str, query: bytes, scope: Scope) -> None:
        """Check that a requested event stream exists: gradio would find out when it has sent the response's head."""
        queue = self.page._queue
        if name == "queue/data":
            page = _query_name(query, "session_hash")
            if page not in queue.pending_messages_per_session:
                raise RejectedCall(404, "nothing was asked by this page")
            scope["query_string"] = urlencode({"session_hash": page}).encode()
        elif name == "upload_progress":
            scope["query_string"] = urlencode({"upload_id": _query_name(query, "upload_id")}).encode()
        elif name.startswith("call/") and name.count("/") == 2:
            event = name.rpartition("/")[2]
            waiting = queue.event_ids_to_events
            if event not in waiting and not any(event in ids for ids in queue.pending_event_ids_session.values()):
                raise RejectedCall(404, "there is no such event")
        elif name in ("queue/join", "upload", "cancel", "reset") or name.startswith(("call/", "run/")):
            raise RejectedCall(405, "use POST")
        else:
            raise RejectedCall(404, "not here")

    async def _call(self, name: str, scope: Scope, receive: Receive) -> bytes:
        """The validated body of a call."""
        first, _, event = name.partition("/")
        if name not in ("queue/join", "cancel", "reset") and (
            first not in ("call", "run") or not event or "/" in event
        ):
            raise RejectedCall(404, "not here")
        body = await self._bodies.read(scope, receive, MAX_CALL)
        if name == "cancel":
            return self._calls.control(body, ("session_hash", "event_id"))
        if name == "reset":
            return self._calls.control(body, ("event_id",))
        clean, function = self._calls.event(body, first, event)
        line = self.page._queue.event_queue_per_concurrency_id.get(function.concurrency_id)
        yours = sum(one.request.scope.get(OWNER) == scope[OWNER] for one in (line.queue if line else ()))
        if yours >= self._share:
            raise RejectedCall(503, f"Queue is full: {yours} questions of yours are waiting")
        return clean

    def _new_cookie(self, scope: Scope) -> bytes:
        secure = "; Secure" if scope["scheme"] == "https" else ""
        value = f"{COOKIE}={secrets.token_hex(16)}; Path={self.prefix}/; HttpOnly; SameSite=Lax{secure}"
        return value.encode()


def _only(scope: Scope, *methods: str) -> None:
    if scope["method"] not in methods:
        raise RejectedCall(405, f"use {' or '.join(methods)}")


def _query_name(query: bytes, name: str) -> str:
    """A name in the query."""
    found = parse_qs(query.decode("latin-1")).get(name, [""])[0]
    if not NAME.fullmatch(found):
        raise RejectedCall(400, f"{name}: letters, digits, - and _ are expected, 64 at most")
    return found


def _cookie(scope: Scope) -> str:
    """The value of our cookie; "" without a valid one."""
    for name, value in scope["headers"]:
        for one in value.split(b";") if name == b"cookie" else ():
            key, _, found = one.strip().decode("latin-1").partition("=")
            if key == COOKIE and len(found) == 32 and NAME.fullmatch(found):
                return found
    return ""


def _too_large(most: int) -> Response:
    return JSONResponse({"detail": f"This is more than the {most / 2**20:.0f} MiB that may be sent at once"}, 413)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read already."""
    unread = [body]

    async def next_part() -> Message:
        return {"type": "http.request", "body": unread.pop(), "more_body": False} if unread else await receive()

    return next_part


def _with_headers(send: Send, cookie: bytes | None) -> Send:
    more = [*HEADERS, *([(b"set-cookie", cookie)] if cookie else [])]

    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *more]
        await send(message)

    return send_with
