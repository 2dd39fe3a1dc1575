"""The queue of requests, and the worker threads that answer them while the event loop sends the pieces."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from chatbridge.inference import ChatSession, Exchange, Reply
from chatbridge.inference.text_stream import StopTextFilter
from chatbridge.processors.base import MediaError
from chatbridge.serving.errors import ApiError, internal_error, media_error
from chatbridge.serving.messages import ParsedRequest, RequestParser
from chatbridge.serving.session_pool import SessionPool

logger = logging.getLogger("chatbridge")


@dataclass(frozen=True)
class AnswerEnd:
    """The end of an answer. `finish` is "stop" or, also for a cancelled one, "length"."""

    reply: Reply
    finish: str
    dropped_turns: int = 0


class QueueSlot:
    """One of the queue's places. Used on the event loop only."""

    def __init__(self, queue: RequestQueue):
        self._queue: RequestQueue | None = queue
        queue.occupied += 1

    def release(self) -> None:
        """Free it; further calls do nothing."""
        if self._queue is not None:
            self._queue.occupied -= 1
            self._queue = None


class AnswerJob:
    """The generation of one answer. Made on the event loop; `run` is for a worker, `cancel` for any thread.

    Args:
        request: what is asked. parser: of the engine that answers. sessions: keep what was read for further requests.
        slot: released when the answer is complete, whether or not its client has read it.
    """

    def __init__(self, request: ParsedRequest, parser: RequestParser, sessions: SessionPool, slot: QueueSlot):
        self.request, self.parser, self.sessions, self.slot = request, parser, sessions, slot
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[str | AnswerEnd | ApiError] = asyncio.Queue()
        self._lock = threading.Lock()
        self._session: ChatSession | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """End it after its next token, or before it starts."""
        with self._lock:
            self._cancelled = True
            if self._session is not None:
                self._session.cancel()

    async def events(self) -> AsyncIterator[str | AnswerEnd]:
        """Pieces of text, then the end.

        Raises:
            ApiError: when it cannot be answered.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, ApiError):
                raise event
            yield event
            if isinstance(event, AnswerEnd):
                return

    def run(self) -> None:
        """Generate the answer. Errors become events."""
        try:
            self._answer()
        except ApiError as error:
            self._put(error)
        except MediaError as error:
            self._put(media_error(self.parser.without_folder(error)))
        except Exception:
            logger.exception("an answer failed")
            self._put(internal_error())
        finally:
            self._call(self.slot.release)

    def _answer(self) -> None:
        request, engine = self.request, self.parser.engine
        if self._cancelled:
            return self._put(AnswerEnd(Reply(finish="cancelled"), "length"))
        try:
            prompt = engine.prompt(request.turns, request.settings)
        except ValueError as error:
            message = str(error).replace("max_new_tokens", "max_tokens")
            raise ApiError(400, message, "context_length_exceeded", "messages") from error
        turns = request.turns[prompt.dropped :]
        with self.sessions.acquire(prompt.positions, request.owner) as pooled:
            try:
                reply, finish = self._generate(pooled.session, turns)
            finally:
                with self._lock:
                    self._session = None  # the pool may give it to another request, which `cancel` must not reach
            pooled.positions = [*prompt.positions, *reply.token_ids]
        logger.info(
            "answered: %d positions (%d of them reused), %d tokens in %.2f s, %s",
            reply.prompt_positions, reply.reused_positions, len(reply.token_ids), reply.seconds, reply.finish,
        )  # fmt: skip
        self._put(AnswerEnd(reply, finish, prompt.dropped))
        return None

    def _generate(self, session: ChatSession, turns: list[Exchange]) -> tuple[Reply, str]:
        session.turns = turns[:-1]
        last = turns[-1]
        answer = session.stream(last.text, media=last.media, settings=self.request.settings)
        with self._lock:
            self._session = session
            if self._cancelled:
                session.cancel()
        stops = StopTextFilter(self.request.stops)
        for piece in answer:
            self._put(stops.add(piece))
            if stops.found:
                answer.close()
                return answer.reply, "stop"
        self._put(stops.end())
        return answer.reply, "stop" if answer.reply.finish == "stop" else "length"

    def _put(self, event: str | AnswerEnd | ApiError) -> None:
        if event != "":
            self._call(self._events.put_nowait, event)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed, and with it the connection
            self._loop.call_soon_threadsafe(function, *arguments)


class RequestQueue:
    """Runs answers, and bounds how many run and wait. For the event loop, `close` excepted.

    Args:
        parallel: answers at a time. max_waiting: requests that may wait for one of them to end.

    Attributes:
        occupied: slots that are taken, of `parallel + max_waiting`.
    """

    def __init__(self, parallel: int, max_waiting: int):
        self.parallel, self.max_waiting = parallel, max_waiting
        self.occupied, self.closing = 0, False
        self._workers = ThreadPoolExecutor(parallel, thread_name_prefix="answer")
        self._running: set[AnswerJob] = set()
        self._mean_seconds = 1.0

    def reserve(self) -> QueueSlot:
        """A slot.

        Raises:
            ApiError: when all are taken, or the server is stopping.
        """
        self.check_free()
        return QueueSlot(self)

    def check_free(self) -> None:
        """Raise ApiError when there is no free slot at the moment."""
        if self.closing:
            raise ApiError(503, "the server is stopping", "stopping", headers={"Connection": "close"})
        if self.occupied >= self.parallel + self.max_waiting:
            seconds = round(min(60.0, max(1.0, self._mean_seconds * self.occupied / self.parallel)))
            raise ApiError(
                429,
                f"{self.parallel} answers are being given and {self.max_waiting} requests wait, which is all that this "
                f"server allows; try again in {seconds} s",
                "queue_full",
                headers={"Retry-After": str(seconds)},
            )

    def start(self, job: AnswerJob) -> None:
        """Run it as soon as a worker is free."""
        self._running.add(job)

        def run() -> None:
            started = time.monotonic()
            try:
                job.run()
            finally:
                self._running.discard(job)
                self._mean_seconds += 0.2 * (time.monotonic() - started - self._mean_seconds)

        self._workers.submit(run)

    def close(self, seconds: float = 0.0) -> None:
        """Refuse new requests; after so many seconds, cancel all answers."""
        self.closing = True
        timer = threading.Timer(seconds, self._cancel)
        timer.daemon = True
        timer.start()

    def shut_down(self) -> None:
        """End the workers, without waiting for their current answers."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def busy(self) -> bool:
        return bool(self._running)

    def _cancel(self) -> None:
        for job in list(self._running):
            job.cancel()
