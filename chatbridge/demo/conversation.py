"""One visitor's conversation: a chat session for every model that is compared, and the files it is about."""

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
from chatbridge.demo.files import Store
from chatbridge.demo.previews import Preview, preview
from chatbridge.demo.room import NOBODY, Owner
from chatbridge.inference import ChatSession, Engine, Exchange, GenerationSettings, Medium, Reply, ReplyStream
from chatbridge.processors.base import MediaError

REFRESH = 0.06
"""Seconds between two updates of the page while an answer comes."""

Begin = Callable[[ChatSession], ReplyStream]


@dataclass
class Side:
    """What one model was asked and said.

    Attributes:
        session: the conversation with it.
        replies: the account of every answer, by its turn.
        missing: what was muted when an answer was given, by its turn.
        partial: the answer that is being given, as far as it has come; None between answers.
    """

    session: ChatSession
    replies: dict[int, Reply] = field(default_factory=dict)
    missing: dict[int, list[Medium]] = field(default_factory=dict)
    partial: str | None = None

    def account(self, reply: Reply) -> None:
        """Note how the last answer came about; what was noted about answers that it replaced is forgotten."""
        last = len(self.session.turns) - 1
        self.replies = {turn: noted for turn, noted in self.replies.items() if turn < last} | {last: reply}
        muted = [medium for medium in self.session.media if medium.muted]
        self.missing = {turn: noted for turn, noted in self.missing.items() if turn < last} | {last: muted}


class Conversation:
    """All that is kept for one visitor.

    Args:
        engines: a model, or two to compare; store: where files go. owner: whose it is.

    Attributes:
        used: when something was last asked of it (`time.monotonic`).
        left: whether its page was closed; returned: whether something was asked nevertheless.
        forgotten: whether it took the place of one that its page still shows.
        rested: whether the memory for a quick next turn was given back.
    """

    def __init__(self, engines: Sequence[Engine], store: Store, owner: Owner = NOBODY):
        self.store, self.owner = store, owner
        self.sides = [Side(ChatSession(engine)) for engine in engines]
        self.folder = store.conversation_folder()
        self.used = time.monotonic()
        self.left = self.returned = self.forgotten = self.rested = False
        self._stopped = self._cleared = float("-inf")
        self._previews: dict[str, Preview] = {}
        self._mute_next: set[int] | None = None
        self._answering = threading.Lock()

    @property
    def turns(self) -> list[Exchange]:
        return self.sides[0].session.turns

    @property
    def media(self) -> list[Medium]:
        return self.sides[0].session.media

    @property
    def busy(self) -> bool:
        """Whether an answer is being given."""
        return self._answering.locked()

    def attach(self, file: str | Path, already: int = 0) -> list[Medium]:
        """Take an upload over and look at it.

        Args:
            already: media that will be shown along with it.

        Returns:
            what is in it: a video's sound stands behind the video.

        Raises:
            MediaError: when it cannot be used, or is one too many; it is removed then.
        """
        limits, session = self.store.limits, self.sides[0].session
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
        """What is shown of a medium; made once.

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

    def ask(self, text: str, media: Sequence[Medium], settings: GenerationSettings, since: float) -> Iterator[None]:
        """Ask about media that were attached; yields whenever there is more to show.

        Args:
            since: when the visitor asked; was it stopped or cleared after that, nothing happens.
        """
        return self._answer(lambda session: session.stream(text, media=media, settings=settings), since)

    def regenerate(self, settings: GenerationSettings, since: float) -> Iterator[None]:
        """Answer the last question once more."""
        return self._answer(lambda session: session.stream_regenerate(settings), since)

    def edit(self, turn: int, text: str, settings: GenerationSettings, since: float) -> Iterator[None]:
        """Ask an earlier question differently."""
        return self._answer(lambda session: session.stream_edit(turn, text, settings=settings), since)

    def _answer(self, begin: Begin, since: float) -> Iterator[None]:
        if not self._answering.acquire(blocking=False):
            raise ValueError("an answer is being given in this conversation; stop it or wait for it")
        try:
            self.used, self.rested = time.monotonic(), False
            self._apply_muting()
            before = [side.session.turns for side in self.sides]
            running = [(side, begin(side.session)) for side in self.sides]
            try:
                yield from self._rounds(running, since)
            finally:
                for (side, answer), old in zip(running, before, strict=True):
                    answer.close()
                    side.partial = None
                    if side.session.turns is not old:
                        side.account(answer.reply)
        finally:
            self.used = time.monotonic()
            self._answering.release()

    def _rounds(self, running: list[tuple[Side, ReplyStream]], since: float) -> Iterator[None]:
        """The models answer by turns, a piece each."""
        shown, waiting = time.monotonic(), list(running)
        while waiting and not self.ended(since):
            for side, answer in list(waiting):
                piece = next(answer, None)
                if piece is None:
                    waiting.remove((side, answer))
                else:
                    side.partial = (side.partial or "") + piece
            if time.monotonic() - shown > REFRESH:
                yield
                shown = time.monotonic()

    def ended(self, since: float) -> bool:
        """Whether what was asked then was stopped or cleared since."""
        return max(self._stopped, self._cleared) > since

    def cleared(self, since: float) -> bool:
        """Whether the conversation was cleared since."""
        return self._cleared > since

    @property
    def muted(self) -> set[int]:
        """Numbers of those media that coming answers do without."""
        if self._mute_next is not None:
            return self._mute_next
        return {number for number, medium in enumerate(self.media) if medium.muted}

    def mute(self, muted: set[int]) -> None:
        """Let coming answers do without these of `media`, and with the others."""
        self._mute_next = {number for number in muted if 0 <= number < len(self.media)}
        if self._answering.acquire(blocking=False):  # else with the next answer
            try:
                self._apply_muting()
            finally:
                self._answering.release()

    def _apply_muting(self) -> None:
        wanted, self._mute_next = self._mute_next, None
        for side in self.sides if wanted is not None else ():
            for number, medium in enumerate(side.session.media):
                if medium.muted != (number in wanted):
                    side.session.mute(number, number in wanted)

    def stop(self) -> None:
        """End the answer that is being given after its next token, and those that wait for their turn."""
        self._stopped = time.monotonic()
        for side in self.sides:
            side.session.cancel()

    def clear(self) -> None:
        """Forget everything, also the answer that is being given."""
        with self._alone():
            self._begin_with([ChatSession(side.session.engine) for side in self.sides])

    def save(self, side: int) -> dict[str, Any]:
        """The conversation with one of the models as plain values, media included.

        Raises:
            ValueError: when there is nothing to save, or too much to load it again.
        """
        if not self.turns:
            raise ValueError("nothing has been said yet")
        size = sum(_size(medium) for medium in self.media) * 4 // 3  # in base64
        self.store.limits.check_bytes("the conversation with its media", size)
        return self.sides[side].session.export(embed=True)

    def load(self, plain: Any) -> None:
        """Go on with a conversation that was saved, instead of this one.

        Raises:
            ValueError: when it is none, or one that this model cannot go on with; nothing is replaced then.
        """
        limits = self.store.limits
        with self._alone():
            fresh = [ChatSession(side.session.engine) for side in self.sides]
            for session in fresh:
                session.load(plain, files=False)
            limits.check_count(len(fresh[0].media))
            folder, previews = self.store.conversation_folder(), {}
            try:
                for medium in fresh[0].media:
                    limits.check(medium.source, medium.modality)
                _put_down(fresh, folder)
                for medium in fresh[0].media:
                    self._preview(medium, folder, previews)
            except ValueError:
                self.store.remove(folder)
                raise
            self._begin_with(fresh, folder, previews)

    def _begin_with(
        self, sessions: list[ChatSession], folder: Path | None = None, previews: dict[str, Preview] | None = None
    ) -> None:
        self.store.remove(self.folder)
        self.sides = [Side(session) for session in sessions]
        self.folder, self._previews = folder or self.store.conversation_folder(), previews or {}
        self._mute_next = None

    @contextmanager
    def _alone(self, seconds: float = 30.0) -> Iterator[None]:
        """While it is open no answer is being given; one that is, is ended first.

        Raises:
            ValueError: when it does not end.
        """
        self._cleared = time.monotonic()
        self.stop()
        if not self._answering.acquire(timeout=seconds):
            raise ValueError("the answer that is being given does not end; try again")
        try:
            self.used = time.monotonic()
            yield
        finally:
            self._answering.release()

    def rest(self) -> None:
        """Give back the memory that makes a further turn quick, unless an answer is being given."""
        if not self.rested and self._answering.acquire(blocking=False):
            try:
                self.rested = True
                for side in self.sides:
                    side.session.release_cache()
            finally:
                self._answering.release()

    def close(self) -> None:
        """End what is going on and remove the files."""
        self._cleared = time.monotonic()
        self.stop()
        self.store.remove(self.folder)


def _put_down(sessions: Sequence[ChatSession], folder: Path) -> None:
    """Write media that came as bytes to files: in memory they would be in nobody's share of the room."""
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
