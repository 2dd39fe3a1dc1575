"""One answer, made in a worker thread while the event loop passes it on."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from chatbridge.inference import Answer, ChatSession, Exchange, Reply
from chatbridge.processors.base import MediaError
from chatbridge.serving.content import Question, Reader
from chatbridge.serving.errors import ApiError, internal, of_medium
from chatbridge.serving.sessions import Sessions
from chatbridge.serving.stops import StopTexts

logger = logging.getLogger("chatbridge")


@dataclass(frozen=True)
class End:
    """The end of an answer. `finish` is "stop" or, also for one that was cancelled, "length"."""

    reply: Reply
    finish: str
    dropped: int


class Place:
    """A place in the queue. For the event loop."""

    def __init__(self, desk: Desk):
        self._desk: Desk | None = desk
        desk.taken += 1

    def leave(self) -> None:
        """Give it back, if that has not been done yet."""
        if self._desk is not None:
            self._desk.taken -= 1
            self._desk = None


class Answering:
    """A question on its way to an answer. Made on the event loop; `run` is for a worker, `cancel` for any thread.

    Args:
        question: what is asked. reader: of the engine that answers. sessions: where what was read is kept.
        place: in the queue, which is free when the answer is there, whether or not its client has read it.
    """

    def __init__(self, question: Question, reader: Reader, sessions: Sessions, place: Place):
        self.question, self.reader, self.sessions, self.place = question, reader, sessions, place
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[str | End | ApiError] = asyncio.Queue()
        self._lock = threading.Lock()
        self._session: ChatSession | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """End it after its next token, or before it begins."""
        with self._lock:
            self._cancelled = True
            if self._session is not None:
                self._session.cancel()

    async def events(self) -> AsyncIterator[str | End]:
        """Pieces of text, and at last the end.

        Raises:
            ApiError: when it cannot be answered.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, ApiError):
                raise event
            yield event
            if isinstance(event, End):
                return

    def run(self) -> None:
        """Answer. What goes wrong becomes an event."""
        try:
            self._answer()
        except ApiError as error:
            self._put(error)
        except MediaError as error:
            self._put(of_medium(self.reader.without_folder(error)))
        except Exception:
            logger.exception("an answer failed")
            self._put(internal())
        finally:
            self._call(self.place.leave)

    def _answer(self) -> None:
        question, engine = self.question, self.reader.engine
        if self._cancelled:
            return self._put(End(Reply(finish="cancelled"), "length", question.dropped))
        try:
            prompt = engine.prompt(question.turns, question.settings)
        except ValueError as error:
            message = str(error).replace("max_new_tokens", "max_tokens")
            raise ApiError(400, message, "context_length_exceeded", "messages") from error
        turns = question.turns[prompt.dropped :]
        with self.sessions.lend(prompt.positions, question.owner) as kept:
            try:
                reply, finish = self._pieces(kept.session, turns)
            finally:
                with self._lock:
                    self._session = None  # it may be somebody else's soon, whom our client must not interrupt
            kept.positions = [*prompt.positions, *reply.token_ids]
        logger.info(
            "answered: %d positions (%d of them reused), %d tokens in %.2f s, %s",
            reply.prompt_positions, reply.reused_positions, len(reply.token_ids), reply.seconds, reply.finish,
        )  # fmt: skip
        self._put(End(reply, finish, question.dropped + prompt.dropped))
        return None

    def _pieces(self, session: ChatSession, turns: list[Exchange]) -> tuple[Reply, str]:
        session.turns = turns[:-1]
        last = turns[-1]
        answer: Answer = session.stream(last.text, media=last.media, settings=self.question.settings)
        with self._lock:
            self._session = session
            if self._cancelled:
                session.cancel()
        stops = StopTexts(self.question.stops)
        for piece in answer:
            self._put(stops.add(piece))
            if stops.found:
                answer.close()
                return answer.reply, "stop"
        self._put(stops.end())
        return answer.reply, "stop" if answer.reply.finish == "stop" else "length"

    def _put(self, event: str | End | ApiError) -> None:
        if event != "":
            self._call(self._events.put_nowait, event)

    def _call(self, what: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is listening any more
            self._loop.call_soon_threadsafe(what, *arguments)


class Desk:
    """Who is answered, who waits and who is turned away. For the event loop, `close` excepted.

    Args:
        parallel: answers at a time. queue: requests that may wait for one of them to end.
    """

    def __init__(self, parallel: int, queue: int):
        self.parallel, self.queue = parallel, queue
        self.taken, self.closing = 0, False
        self._workers = ThreadPoolExecutor(parallel, thread_name_prefix="answer")
        self._current: set[Answering] = set()
        self._usual_seconds = 1.0

    def take(self) -> Place:
        """A place in the queue.

        Raises:
            ApiError: when all are taken, or the server is stopping.
        """
        self.check()
        return Place(self)

    def check(self) -> None:
        """Raise ApiError when there is no place at the moment."""
        if self.closing:
            raise ApiError(503, "the server is stopping", "stopping", headers={"Connection": "close"})
        if self.taken >= self.parallel + self.queue:
            seconds = round(min(60.0, max(1.0, self._usual_seconds * self.taken / self.parallel)))
            raise ApiError(
                429,
                f"{self.parallel} answers are being given and {self.queue} requests wait, which is all that this "
                f"server allows; try again in {seconds} s",
                "queue_full",
                headers={"Retry-After": str(seconds)},
            )

    def start(self, answering: Answering) -> None:
        """Let it be answered as soon as a worker is free."""
        self._current.add(answering)

        def run() -> None:
            begun = time.monotonic()
            try:
                answering.run()
            finally:
                self._current.discard(answering)
                self._usual_seconds += 0.2 * (time.monotonic() - begun - self._usual_seconds)

        self._workers.submit(run)

    def close(self, seconds: float = 0.0) -> None:
        """Take no more; after so many seconds, end all answers where they are."""
        self.closing = True
        timer = threading.Timer(seconds, self._cancel)
        timer.daemon = True
        timer.start()

    def shut_down(self) -> None:
        """Send the workers home, without waiting for those that are at work."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def busy(self) -> bool:
        return bool(self._current)

    def _cancel(self) -> None:
        for answering in list(self._current):
            answering.cancel()
