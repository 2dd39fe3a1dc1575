"""The routes: what is asked of a worker, and how its answer goes back."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from chatbridge.inference import ChatSession, Engine
from chatbridge.inference.limits import MIB, MediaLimits
from chatbridge.serving.answering import Answering, Desk, End, Place
from chatbridge.serving.content import Question, Reader
from chatbridge.serving.errors import ApiError, internal
from chatbridge.serving.sessions import Sessions
from chatbridge.serving.wire import (
    ChatRequest,
    Choice,
    Chunk,
    ChunkChoice,
    Completion,
    Delta,
    Extras,
    Model,
    Models,
    Said,
    TokenDetails,
    Usage,
    read_request,
)
from chatbridge.web.bodies import Bodies, NoRoom, TooLarge

logger = logging.getLogger("chatbridge")

BODIES = 4
"""Requests of the largest size that fit into memory while they arrive."""

GONE = 499
"""Nobody reads it: the status of a request whose client hung up (nginx's number)."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """How an engine is served.

    Attributes:
        model_name: what clients call the model.
        limits: on media. max_body: bytes of a request; media in base64 take a third more than their files.
        folder: files below it may be named by requests; None for none.
        keys: one of them must come with every request; none are asked for if it is empty.
        parallel: answers at a time. queue: requests that may wait.
        max_beams: that a request may search with; each takes the memory of one more conversation.
        cache_positions: positions whose keys and values are kept for further turns.
        separate: reuse nothing across API keys and the requests' ``user``.
        system: what becomes of system messages: "refuse", "ignore" or "prepend".
    """

    model_name: str
    limits: MediaLimits = field(default_factory=MediaLimits)
    max_body: int = 128 * MIB
    folder: Path | None = None
    keys: Sequence[str] = field(default=(), repr=False)
    parallel: int = 4
    queue: int = 32
    max_beams: int = 8
    cache_positions: int = 8192
    separate: bool = False
    system: str = "refuse"

    def __post_init__(self) -> None:
        for name, least in (("parallel", 1), ("queue", 0), ("max_beams", 1), ("cache_positions", 0), ("max_body", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; take a value from {least} up")
        if self.folder is not None and not self.folder.is_dir():
            raise ValueError(f"the media folder {self.folder} is no folder")


class Endpoint:
    """An engine that answers HTTP requests.

    Attributes:
        desk: who is being answered.
    """

    def __init__(self, engine: Engine, options: ServingOptions):
        self.engine, self.options = engine, options
        self.reader = Reader(engine=engine, limits=options.limits, folder=options.folder, system=options.system)
        self.desk = Desk(options.parallel, options.queue)
        self._bodies = Bodies(BODIES * options.max_body)
        self.sessions = Sessions(lambda: ChatSession(engine), options.cache_positions)
        self._model = Model(id=options.model_name, created=int(time.time()), modalities=list(engine.modalities))

    async def health(self, _: Request) -> Response:
        answered = min(self.desk.taken, self.desk.parallel)
        return JSONResponse({"status": "ok", "answering": answered, "waiting": self.desk.taken - answered})

    async def models(self, request: Request) -> Response:
        self._owner(request)
        return _json(Models(data=[self._model]))

    async def model(self, request: Request) -> Response:
        self._owner(request)
        self._check_model(request.path_params["name"])
        return _json(self._model)

    async def completions(self, request: Request) -> Response:
        key = self._owner(request)
        self._check_kind(request)
        self.desk.check()  # those who would be turned away afterwards need not send everything first
        body = await self._body(request)
        place = self.desk.take()
        try:
            return await self._answer(request, key, body, place)
        except BaseException as error:
            place.leave()
            if not isinstance(error, Exception) or isinstance(error, ApiError | ClientDisconnect):
                raise
            logger.exception("a request failed")
            return internal().response()

    async def _answer(self, request: Request, key: str, body: bytes, place: Place) -> Response:
        asked, question = await asyncio.to_thread(self._understand, body, key)
        del body
        answering = Answering(question, self.reader, self.sessions, place)
        self.desk.start(answering)
        written = Written(asked, answering)
        try:
            if asked.stream:
                first = await _unless_gone(request, written.first())
                return EventStream(first, written)
            whole = await _unless_gone(request, written.whole())
        except BaseException:
            answering.cancel()
            raise
        place.leave()
        return _json(whole)

    def _understand(self, body: bytes, key: str) -> tuple[ChatRequest, Question]:
        asked = read_request(body)
        self._check_model(asked.model)
        if (asked.num_beams or 1) > self.options.max_beams:
            message = f"num_beams is more than the {self.options.max_beams} that this server allows"
            raise ApiError(400, message, "invalid_value", "num_beams")
        owner = f"{key}\n{asked.user or ''}" if self.options.separate else ""
        return asked, self.reader.question(asked, owner)

    def _owner(self, request: Request) -> str:
        """Which of the keys came along, as its number."""
        if not self.options.keys:
            return ""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        for number, key in enumerate(self.options.keys):
            if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode()):
                return str(number)
        raise ApiError(
            401,
            "the API key is missing or wrong; send it as 'Authorization: Bearer ...'",
            "invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _check_model(self, name: str) -> None:
        if name != self._model.id:
            raise ApiError(
                404, f"no model is called '{name[:100]}'; it is '{self._model.id}'", "model_not_found", "model"
            )

    def _check_kind(self, request: Request) -> None:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # web pages of others can send anything else without asking
            raise ApiError(415, "send JSON, with 'Content-Type: application/json'", "invalid_content_type")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.options.max_body:
            raise self._too_large()

    async def _body(self, request: Request) -> bytes:
        try:
            return await self._bodies.read(request.receive, self.options.max_body)
        except TooLarge:
            raise self._too_large() from None
        except NoRoom:
            message = "too much is being sent to this server; try again later"
            raise ApiError(503, message, "overloaded", headers={"Retry-After": "1"}) from None

    def _too_large(self) -> ApiError:
        most = f"{self.options.max_body / MIB:.1f} MiB"
        return ApiError(413, f"the request is larger than the {most} allowed; send less", "request_too_large")


class Written:
    """An answer in OpenAI's words."""

    def __init__(self, asked: ChatRequest, answering: Answering):
        self.asked, self.answering = asked, answering
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._events = answering.events()

    async def whole(self) -> Completion:
        text = ""
        async for event in self._events:
            if isinstance(event, End):
                break
            text += event
        return Completion(
            id=self._id,
            created=self._created,
            model=self.asked.model,
            choices=[Choice(message=Said(content=text), finish_reason=event.finish)],
            usage=_usage(event),
            chatbridge=_extras(event),
        )

    async def first(self) -> str | End:
        """What comes first; errors come here, while there is still a status to tell them with."""
        return await anext(self._events)

    async def lines(self, first: str | End) -> AsyncIterator[str]:
        """Server-sent events, from what came first on."""
        yield self._line(Delta(role="assistant", content=""))
        event = first
        try:
            while not isinstance(event, End):
                yield self._line(Delta(content=event))
                event = await anext(self._events)
        except ApiError as error:
            yield f"data: {JSONResponse(error.body).body.decode()}\n\n"
            return
        yield self._line(Delta(), event)
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            yield _line(self._chunk(usage=_usage(event)))
        yield "data: [DONE]\n\n"

    def _line(self, delta: Delta, end: End | None = None) -> str:
        choice = ChunkChoice(delta=delta, finish_reason=end.finish if end else None)
        return _line(self._chunk(choices=[choice], chatbridge=_extras(end) if end else None))

    def _chunk(self, **fields: object) -> Chunk:
        given = {"id": self._id, "created": self._created, "model": self.asked.model, "choices": [], **fields}
        return Chunk.model_validate(given)


class EventStream(StreamingResponse):
    """An answer as it comes. However it ends, nothing goes on afterwards, and its place is free."""

    def __init__(self, first: str | End, written: Written):
        super().__init__(written.lines(first), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.answering = written.answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.answering.cancel()
            self.answering.place.leave()


def make_app(endpoint: Endpoint) -> Starlette:
    """The ASGI application."""
    app = Starlette(
        routes=[
            Route("/health", endpoint.health),
            Route("/v1/models", endpoint.models),
            Route("/v1/models/{name:path}", endpoint.model),
            Route("/v1/chat/completions", endpoint.completions, methods=["POST"]),
        ],
        exception_handlers={
            ApiError: lambda _, error: error.response(),
            HTTPException: _no_route,
            ClientDisconnect: lambda *_: Response(status_code=GONE),
            Exception: lambda *_: internal().response(),
        },
    )
    app.router.redirect_slashes = False
    return app


def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:200]
    message = f"{request.method} {path}: {error.detail}; see docs/serving.md for what there is"
    return ApiError(error.status_code, message, "unknown_url", headers=error.headers).response()


async def _unless_gone(request: Request, wanted: Awaitable[T]) -> T:
    """Wait for something, unless the client hangs up first.

    Raises:
        ClientDisconnect: when it does.
    """
    task, gone = asyncio.ensure_future(wanted), asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(model: BaseModel) -> JSONResponse:
    return JSONResponse(model.model_dump())


def _line(chunk: Chunk) -> str:
    return f"data: {chunk.model_dump_json()}\n\n"


def _usage(end: End) -> Usage:
    read, made = end.reply.prompt_positions, len(end.reply.token_ids)
    return Usage(
        prompt_tokens=read,
        completion_tokens=made,
        total_tokens=read + made,
        prompt_tokens_details=TokenDetails(cached_tokens=end.reply.reused_positions),
    )


def _extras(end: End) -> Extras:
    return Extras(seed=end.reply.seed, dropped_turns=end.dropped, remarks=end.reply.remarks)
