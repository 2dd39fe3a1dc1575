"""The conversation of one page: a chat session with every model that is compared, and its files."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chatbridge.common.documents import repaired
from chatbridge.demo.fair_share import NO_OWNER, Owner
from chatbridge.demo.file_store import FileStore
from chatbridge.demo.previews import Preview, preview
from chatbridge.inference import ChatSession, Engine, Exchange, GenerationSettings, Medium, Reply, ReplyStream
from chatbridge.processors.base import MediaError

REFRESH = 0.06
"""Seconds between two updates of the page while an answer is generated."""

StartAnswer = Callable[[ChatSession], ReplyStream]


@dataclass
class ModelChat:
    """The conversation with one model.

    Attributes:
        replies: of the session, by turn.
        muted: the media that were muted when an answer was generated, by turn.
        partial: the current answer so far; None between answers.
    """

    session: ChatSession
    replies: dict[int, Reply] = field(default_factory=dict)
    muted: dict[int, list[Medium]] = field(default_factory=dict)
    partial: str | None = None

    def record(self, reply: Reply) -> None:
        """Store the last turn's reply, and remove those of turns that it replaced."""
        last = len(self.session.turns) - 1
        self.replies = {turn: old for turn, old in self.replies.items() if turn < last} | {last: reply}
        muted = [medium for medium in self.session.media if medium.muted]
        self.muted = {turn: old for turn, old in self.muted.items() if turn < last} | {last: muted}


class Conversation:
    """All that is kept for one page.

    Args:
        engines: a model, or two to compare; store: of its files. owner: whose it is.

    Attributes:
        last_used: time of its last request (`time.monotonic`).
        page_closed: whether its page was closed; resumed: whether it was used nevertheless.
        expired: whether it replaces an expired one, which its page still shows.
        cache_released: whether its sessions' keys and values were freed.
    """

    def __init__(self, engines: Sequence[Engine], store: FileStore, owner: Owner = NO_OWNER):
        self.store, self.owner = store, owner
        self.chats = [ModelChat(ChatSession(engine)) for engine in engines]
        self.folder = store.conversation_folder()
        self.last_used = time.monotonic()
        self.page_closed = self.resumed = self.expired = self.cache_released = False
        self._stopped = self._cleared = float("-inf")
        self._previews: dict[str, Preview] = {}
        self._pending_mutes: set[int] | None = None
        self._lock = threading.Lock()

    @property
    def turns(self) -> list[Exchange]:
        return self.chats[0].session.turns

    @property
    def media(self) -> list[Medium]:
        return self.chats[0].session.media

    @property
    def busy(self) -> bool:
        """Whether an answer is being generated."""
        return self._lock.locked()

    def attach(self, file: str | Path, already: int = 0) -> list[Medium]:
        """Move an uploaded file into the conversation, and check it.

        Args:
            already: media that were attached for the same question.

        Returns:
            its media: a video's sound follows the video.

        Raises:
            MediaError: when it cannot be used, or there are too many; it is removed then.
        """
        limits, session = self.store.limits, self.chats[0].session
        path = self.store.take(file, self.folder)
        try:
            limits.check_count(len(self.media) + already + 1)
            media = session.attach(**{f"{limits.check(path).kind}s": [path]})
            for medium in media:
                self.preview_of(medium)
        except MediaError:
            self.store.remove(path.parent)
            raise
        return media

    def preview_of(self, medium: Medium) -> Preview:
        """The preview of a medium; made once.

        Raises:
            MediaError: when it cannot be decoded.
        """
        return self._preview(medium, self.folder, self._previews)

    def _preview(self, medium: Medium, folder: Path, known: dict[str, Preview]) -> Preview:
        key = f"{medium.modality}:{medium.digest}"
        if key not in known:
            with_video = medium.modality == "audio" and f"video:{medium.digest}" in known
            known[key] = preview(medium, folder / medium.digest[:20], self.store.limits, with_video)
        return known[key]

    def ask(self, text: str, media: Sequence[Medium], settings: GenerationSettings, asked_at: float) -> Iterator[None]:
        """Ask about attached media; yields whenever there is more to show.

        Args:
            asked_at: when the request arrived; if it was stopped or cleared since, nothing happens.
        """
        return self._answer(lambda session: session.stream(text, media=media, settings=settings), asked_at)

    def regenerate(self, settings: GenerationSettings, asked_at: float) -> Iterator[None]:
        """Answer the last question once more."""
        return self._answer(lambda session: session.stream_regenerate(settings), asked_at)

    def edit(self, turn: int, text: str, settings: GenerationSettings, asked_at: float) -> Iterator[None]:
        """Ask an earlier question differently."""
        return self._answer(lambda session: session.stream_edit(turn, text, settings=settings), asked_at)

    def _answer(self, start: StartAnswer, asked_at: float) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise ValueError("an answer is being given in this conversation; stop it or wait for it")
        try:
            self.last_used, self.cache_released = time.monotonic(), False
            self._apply_muting()
            before = [chat.session.turns for chat in self.chats]
            running = [(chat, start(chat.session)) for chat in self.chats]
            try:
                yield from self._alternate(running, asked_at)
            finally:
                for (chat, answer), old in zip(running, before, strict=True):
                    answer.close()
                    chat.partial = None
                    if chat.session.turns is not old:
                        chat.record(answer.reply)
        finally:
            self.last_used = time.monotonic()
            self._lock.release()

    def _alternate(self, running: list[tuple[ModelChat, ReplyStream]], asked_at: float) -> Iterator[None]:
        """The models generate a piece each, in turn."""
        shown, waiting = time.monotonic(), list(running)
        while waiting and not self.stopped_since(asked_at):
            for chat, answer in list(waiting):
                piece = next(answer, None)
                if piece is None:
                    waiting.remove((chat, answer))
                else:
                    chat.partial = (chat.partial or "") + piece
            if time.monotonic() - shown > REFRESH:
                yield
                shown = time.monotonic()

    def stopped_since(self, asked_at: float) -> bool:
        """Whether a request of that time was stopped or cleared."""
        return max(self._stopped, self._cleared) > asked_at

    def cleared_since(self, asked_at: float) -> bool:
        return self._cleared > asked_at

    @property
    def muted(self) -> set[int]:
        """Numbers of the media that further answers do not see."""
        if self._pending_mutes is not None:
            return self._pending_mutes
        return {number for number, medium in enumerate(self.media) if medium.muted}

    def mute(self, muted: set[int]) -> None:
        """Mute these of `media` in further answers, and no others."""
        self._pending_mutes = {number for number in muted if 0 <= number < len(self.media)}
        if self._lock.acquire(blocking=False):  # else before the next answer
            try:
                self._apply_muting()
            finally:
                self._lock.release()

    def _apply_muting(self) -> None:
        wanted, self._pending_mutes = self._pending_mutes, None
        for chat in self.chats if wanted is not None else ():
            for number, medium in enumerate(chat.session.media):
                if medium.muted != (number in wanted):
                    chat.session.mute(number, number in wanted)

    def stop(self) -> None:
        """End the current answer after its next token, and cancel requests in the queue."""
        self._stopped = time.monotonic()
        for chat in self.chats:
            chat.session.cancel()

    def clear(self) -> None:
        """Remove all turns and files; ends the current answer."""
        with self._exclusive():
            self._replace([ChatSession(chat.session.engine) for chat in self.chats])

    def save(self, number: int) -> dict[str, Any]:
        """The conversation with one of the models as plain values, media included.

        Raises:
            ValueError: when there is nothing to save, or too much to load it again.
        """
        if not self.turns:
            raise ValueError("nothing has been said yet")
        size = sum(_size(medium) for medium in self.media) * 4 // 3  # in base64
        self.store.limits.check_bytes("the conversation with its media", size)
        return self.chats[number].session.export(embed=True)

    def load(self, plain: Any) -> None:
        """Replace this conversation by a saved one.

        Raises:
            ValueError: when it is malformed, or has media that this model cannot use; nothing is replaced then.
        """
        limits = self.store.limits
        with self._exclusive():
            sessions = [ChatSession(chat.session.engine) for chat in self.chats]
            for session in sessions:
                session.load(plain, files=False)
            limits.check_count(len(sessions[0].media))
            folder, previews = self.store.conversation_folder(), {}
            try:
                for medium in sessions[0].media:
                    limits.check(medium.source, medium.modality)
                _write_media(sessions, folder)
                for medium in sessions[0].media:
                    self._preview(medium, folder, previews)
            except ValueError:
                self.store.remove(folder)
                raise
            self._replace(sessions, folder, previews)

    def _replace(
        self, sessions: list[ChatSession], folder: Path | None = None, previews: dict[str, Preview] | None = None
    ) -> None:
        self.store.remove(self.folder)
        self.chats = [ModelChat(session) for session in sessions]
        self.folder, self._previews = folder or self.store.conversation_folder(), previews or {}
        self._pending_mutes = None

    @contextmanager
    def _exclusive(self, seconds: float = 30.0) -> Iterator[None]:
        """Ends the current answer, and keeps others from starting while the context is open.

        Raises:
            ValueError: when it does not end.
        """
        self._cleared = time.monotonic()
        self.stop()
        if not self._lock.acquire(timeout=seconds):
            raise ValueError("the answer that is being given does not end; try again")
        try:
            self.last_used = time.monotonic()
            yield
        finally:
            self._lock.release()

    def release_cache(self) -> None:
        """Free the keys and values of its sessions, unless an answer is being generated."""
        if not self.cache_released and self._lock.acquire(blocking=False):
            try:
                self.cache_released = True
                for chat in self.chats:
                    chat.session.release_cache()
            finally:
                self._lock.release()

    def close(self) -> None:
        """End the current answer and remove the files."""
        self._cleared = time.monotonic()
        self.stop()
        self.store.remove(self.folder)


def _write_media(sessions: Sequence[ChatSession], folder: Path) -> None:
    """Write media that came as bytes to files, where they count as the owner's share of the disk."""
    files: dict[str, Path] = {}
    for turn in (turn for session in sessions for turn in session.turns):
        for number, medium in enumerate(turn.media):
            if medium.digest not in files:
                name = repaired(medium.name).encode()[-200:].decode(errors="ignore")
                files[medium.digest] = folder / secrets.token_hex(8) / (name.strip(".") or "medium")
                files[medium.digest].parent.mkdir()
                files[medium.digest].write_bytes(medium.source.data)
            turn.media[number] = replace(Medium.of(medium.modality, files[medium.digest]), muted=medium.muted)


def _size(medium: Medium) -> int:
    return Path(medium.source).stat().st_size
