"""What stands between the network and gradio: its own route for uploads, bounds on requests, headers."""

from __future__ import annotations

import json
import time
from typing import Any

from gradio.route_utils import MultiPartException, upload_fn
from gradio.routes import file_upload_statuses
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatbridge.demo.files import Full, Store
from chatbridge.demo.visitors import Visitors

ARRIVED = "chatbridge.arrived"
"""Where a request's scope says when it came (`time.monotonic`)."""

UPLOAD, HEARTBEAT = "/gradio_api/upload", "/gradio_api/heartbeat/"

MOST_TEXT = 32 * 2**20
"""Bytes of a request that is no upload."""

SLACK = 2**20
"""Bytes around the files of an upload."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""Nothing is loaded from elsewhere, whatever gradio's scripts would like."""

HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

PAGE = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
FILES = ("/assets/", "/static/")
CALLS = ("app_id", "call", "cancel", "file=", "heartbeat", "info", "openapi.json", "queue", "reset", "run")
CALLS += ("startup-events", "theme.css", "upload", "upload_progress", "user")
"""Routes of gradio that a page or a client uses. There are others, which edit the program, fetch from elsewhere or
start FFmpeg on whatever they are sent."""


class Guard:
    """Wraps gradio's application (ASGI).

    Args:
        app: what answers. visitors: are told when a page is opened or closed.
    """

    def __init__(self, app: ASGIApp, visitors: Visitors):
        self.app, self.visitors = app, visitors
        limits = visitors.store.limits
        self.most_upload = limits.max_count * limits.max_bytes + SLACK

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope[ARRIVED] = time.monotonic()
        path = scope["path"]
        refusal = self._refusal(scope, path)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(send))
            return
        if path.startswith(HEARTBEAT):  # a request that lasts as long as the page
            name = path.rsplit("/", 1)[-1]
            self.visitors.arrive(name)
            try:
                await self.app(scope, receive, _with_headers(send))
            finally:
                self.visitors.leave(name)
            return
        if path == UPLOAD:
            await self.app(scope, _bounded(receive, self.most_upload), _with_headers(send))
            return
        receive = _bounded(receive, MOST_TEXT)
        if scope["method"] == "POST":
            body = await _whole(receive)
            if body is None or _names_address(body):
                answer = too_large(MOST_TEXT) if body is None else PlainTextResponse("files are uploaded here", 400)
                await answer(scope, receive, _with_headers(send))
                return
            receive = _again(body, receive)
        await self.app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope, path: str) -> Response | None:
        if not _is_open(path):
            return PlainTextResponse("not here", 404)
        # Gradio would fetch addresses on behalf of whoever asks.
        if path.startswith("/gradio_api/file=") and "://" in path:
            return PlainTextResponse("only files of this page", 403)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        most = self.most_upload if path == UPLOAD else MOST_TEXT
        if length.isdigit() and int(length) > most:
            return too_large(most)
        return None


def _is_open(path: str) -> bool:
    if not path.startswith("/gradio_api/"):
        return path in PAGE or path.startswith(FILES)
    name = path.removeprefix("/gradio_api/")
    return name.startswith("file=") or name.split("/")[0] in CALLS


def too_large(most: int) -> Response:
    return PlainTextResponse(f"This is more than the {most / 2**20:.0f} MiB that may be sent at once", 413)


def upload_route(store: Store) -> Route:
    """Gradio's route for uploads, with a folder of a random name for each: gradio's own names folders by content, so
    that whoever has a file can tell, and see, that somebody else has sent it."""

    async def upload(request: Request) -> Response:
        try:
            folder = store.upload_folder()
        except Full as error:
            return PlainTextResponse(str(error), 503)
        upload_id = request.query_params.get("upload_id")
        progress = file_upload_statuses if upload_id else None
        try:
            files, _, _ = await upload_fn(
                request, str(folder), store.limits.max_bytes, upload_id, force_move=True, upload_progress=progress
            )
        except MultiPartException as error:
            store.remove(folder)
            return PlainTextResponse(error.message, 413 if "maximum allowed size" in error.message else 400)
        except BaseException:
            store.remove(folder)
            raise
        return JSONResponse([str(file) for file in files])

    return Route(UPLOAD, upload, methods=["POST"])


def _bounded(receive: Receive, most: int) -> Receive:
    """The request's body, cut off where it is longer than allowed: a header need not tell the truth."""
    seen = 0

    async def next_part() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > most:
                return {"type": "http.disconnect"}
        return message

    return next_part


async def _whole(receive: Receive) -> bytes | None:
    """The request's body; None where it is cut off."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """As `receive` was before `body` was read from it."""
    waiting = [body]

    async def next_part() -> Message:
        return {"type": "http.request", "body": waiting.pop(), "more_body": False} if waiting else await receive()

    return next_part


def _names_address(body: bytes) -> bool:
    """Whether a request names a file by an address: gradio would fetch it, on behalf of whoever asks."""
    try:
        waiting: list[Any] = [json.loads(body)]
    except (ValueError, RecursionError):
        return False  # what cannot be read is not acted upon either
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "://" in str(value.get("path", "")):
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


def _with_headers(send: Send) -> Send:
    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return send_with
