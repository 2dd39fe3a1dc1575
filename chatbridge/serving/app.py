"""The routes of the endpoint, and its responses: whole or as server-sent events."""

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
from chatbridge.serving.errors import ApiError, internal_error
from chatbridge.serving.messages import ParsedRequest, RequestParser
from chatbridge.serving.protocol import (
    ChatBridgeFields,
    ChatRequest,
    Choice,
    Chunk,
    ChunkChoice,
    Completion,
    Delta,
    ModelCard,
    ModelList,
    ResponseMessage,
    TokenDetails,
    Usage,
    read_request,
)
from chatbridge.serving.request_queue import AnswerEnd, AnswerJob, QueueSlot, RequestQueue
from chatbridge.serving.session_pool import SessionPool
from chatbridge.web.request_bodies import BodiesFull, BodyReader, BodyTooLarge

logger = logging.getLogger("chatbridge")

MAX_BODIES = 4
"""Memory for bodies that are being received, in requests of the largest size."""

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for clients that disconnected; nobody reads it."""

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
        queue: of the requests. sessions: kept between requests. parser: of their messages.
    """

    def __init__(self, engine: Engine, options: ServingOptions):
        self.engine, self.options = engine, options
        self.parser = RequestParser(engine=engine, limits=options.limits, folder=options.folder, system=options.system)
        self.queue = RequestQueue(options.parallel, options.queue)
        self._bodies = BodyReader(MAX_BODIES * options.max_body)
        self.sessions = SessionPool(lambda: ChatSession(engine), options.cache_positions)
        self._model = ModelCard(id=options.model_name, created=int(time.time()), modalities=list(engine.modalities))

    async def health(self, _: Request) -> Response:
        answered = min(self.queue.occupied, self.queue.parallel)
        return JSONResponse({"status": "ok", "answering": answered, "waiting": self.queue.occupied - answered})

    async def models(self, request: Request) -> Response:
        self._owner(request)
        return _json(ModelList(data=[self._model]))

    async def model(self, request: Request) -> Response:
        self._owner(request)
        self._check_model(request.path_params["name"])
        return _json(self._model)

    async def completions(self, request: Request) -> Response:
        key = self._owner(request)
        self._check_content_type(request)
        self.queue.check_free()  # before the body is sent in vain
        body = await self._body(request)
        slot = self.queue.reserve()
        try:
            return await self._answer(request, key, body, slot)
        except BaseException as error:
            slot.release()
            if not isinstance(error, Exception) or isinstance(error, ApiError | ClientDisconnect):
                raise
            logger.exception("a request failed")
            return internal_error().response()

    async def _answer(self, request: Request, key: str, body: bytes, slot: QueueSlot) -> Response:
        chat_request, parsed = await asyncio.to_thread(self._parse, body, key)
        del body
        job = AnswerJob(parsed, self.parser, self.sessions, slot)
        self.queue.start(job)
        writer = ResponseWriter(chat_request, job)
        try:
            if chat_request.stream:
                first = await _unless_disconnected(request, writer.first())
                return EventStream(first, writer)
            whole = await _unless_disconnected(request, writer.whole())
        except BaseException:
            job.cancel()
            raise
        slot.release()
        return _json(whole)

    def _parse(self, body: bytes, key: str) -> tuple[ChatRequest, ParsedRequest]:
        chat_request = read_request(body)
        self._check_model(chat_request.model)
        if (chat_request.num_beams or 1) > self.options.max_beams:
            message = f"num_beams is more than the {self.options.max_beams} that this server allows"
            raise ApiError(400, message, "invalid_value", "num_beams")
        owner = f"{key}\n{chat_request.user or ''}" if self.options.separate else ""
        return chat_request, self.parser.parse(chat_request, owner)

    def _owner(self, request: Request) -> str:
        """The number of the API key in a request; "" where no keys are needed."""
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

    def _check_content_type(self, request: Request) -> None:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":  # other sites' pages can send other types without a CORS preflight
            raise ApiError(415, "send JSON, with 'Content-Type: application/json'", "invalid_content_type")

    async def _body(self, request: Request) -> bytes:
        try:
            return await self._bodies.read(request.scope, request.receive, self.options.max_body)
        except BodyTooLarge:
            most = f"{self.options.max_body / MIB:.1f} MiB"
            message = f"the request is larger than the {most} allowed; send less"
            raise ApiError(413, message, "request_too_large") from None
        except BodiesFull:
            message = "too much is being sent to this server; try again later"
            raise ApiError(503, message, "overloaded", headers={"Retry-After": "1"}) from None


class ResponseWriter:
    """Writes an answer as OpenAI's response objects."""

    def __init__(self, request: ChatRequest, job: AnswerJob):
        self.request, self.job = request, job
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._events = job.events()

    async def whole(self) -> Completion:
        text = ""
        async for event in self._events:
            if isinstance(event, AnswerEnd):
                break
            text += event
        return Completion(
            id=self._id,
            created=self._created,
            model=self.request.model,
            choices=[Choice(message=ResponseMessage(content=text), finish_reason=event.finish)],
            usage=_usage(event),
            chatbridge=_extras(event),
        )

    async def first(self) -> str | AnswerEnd:
        """The first event; errors are raised here, while there is still a status to report them with."""
        return await anext(self._events)

    async def lines(self, first: str | AnswerEnd) -> AsyncIterator[str]:
        """Server-sent events, from the first event on."""
        yield self._line(Delta(role="assistant", content=""))
        event = first
        try:
            while not isinstance(event, AnswerEnd):
                yield self._line(Delta(content=event))
                event = await anext(self._events)
        except ApiError as error:
            yield f"data: {JSONResponse(error.body).body.decode()}\n\n"
            return
        yield self._line(Delta(), event)
        if self.request.stream_options is not None and self.request.stream_options.include_usage:
            yield _line(self._chunk(usage=_usage(event)))
        yield "data: [DONE]\n\n"

    def _line(self, delta: Delta, end: AnswerEnd | None = None) -> str:
        choice = ChunkChoice(delta=delta, finish_reason=end.finish if end else None)
        return _line(self._chunk(choices=[choice], chatbridge=_extras(end) if end else None))

    def _chunk(self, **fields: object) -> Chunk:
        given = {"id": self._id, "created": self._created, "model": self.request.model, "choices": [], **fields}
        return Chunk.model_validate(given)


class EventStream(StreamingResponse):
    """Streams an answer; when the stream ends for any reason, generation ends and the slot is released."""

    def __init__(self, first: str | AnswerEnd, writer: ResponseWriter):
        super().__init__(writer.lines(first), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.job = writer.job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.job.cancel()
            self.job.slot.release()


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
            HTTPException: _http_error,
            ClientDisconnect: lambda *_: Response(status_code=CLIENT_CLOSED_REQUEST),
            Exception: lambda *_: internal_error().response(),
        },
    )
    app.router.redirect_slashes = False
    return app


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:200]
    message = f"{request.method} {path}: {error.detail}; see docs/serving.md for what there is"
    return ApiError(error.status_code, message, "unknown_url", headers=error.headers).response()


async def _unless_disconnected(request: Request, result: Awaitable[T]) -> T:
    """Wait for a result, unless the client disconnects first.

    Raises:
        ClientDisconnect: when it does.
    """
    task, disconnected = asyncio.ensure_future(result), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        disconnected.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(model: BaseModel) -> JSONResponse:
    return JSONResponse(model.model_dump())


def _line(chunk: Chunk) -> str:
    return f"data: {chunk.model_dump_json()}\n\n"


def _usage(end: AnswerEnd) -> Usage:
    read, made = end.reply.prompt_positions, len(end.reply.token_ids)
    return Usage(
        prompt_tokens=read,
        completion_tokens=made,
        total_tokens=read + made,
        prompt_tokens_details=TokenDetails(cached_tokens=end.reply.reused_positions),
    )


def _extras(end: AnswerEnd) -> ChatBridgeFields:
    return ChatBridgeFields(seed=end.reply.seed, dropped_turns=end.dropped_turns, remarks=end.reply.remarks)
