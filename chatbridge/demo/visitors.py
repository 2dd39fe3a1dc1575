"""Who is here: one conversation for every open page, found by the page's own random name; and what room each takes."""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence

from chatbridge.demo.conversation import Conversation
from chatbridge.demo.files import Full, Store, Upload
from chatbridge.demo.room import NOBODY, Held, Owner, first_to_go
from chatbridge.inference import Engine

MOST = 256
"""Conversations that are kept at a time; for further ones, room is made as room.py says."""

WARM = 4
"""Conversations whose keys and values are kept for a quick next turn (a gigabyte and more each, for large models)."""

KEPT_SECONDS = 120.0
"""How long a conversation outlives its page: phones drop the connection whenever another app is in front."""

RETURNED_SECONDS = 1800.0
"""How long it is kept after its page has come back: gradio's pages do not say that they are open any more then."""

IDLE_SECONDS = 6 * 3600.0
"""How long a page may be open without anything being asked."""

REMEMBERED = 4096
"""Names of pages whose conversation was forgotten, so that they can be told."""


class Visitors:
    """Conversations by the name of their page (gradio's session hash, which only that page knows).

    Args:
        engines, store: what conversations are made of. kept_seconds: how long one outlives its page.

    Attributes:
        closing: whether the server is being shut down.
    """

    def __init__(self, engines: Sequence[Engine], store: Store, kept_seconds: float = KEPT_SECONDS):
        self.engines, self.store, self.kept_seconds = engines, store, kept_seconds
        self.closing = False
        self._kept: OrderedDict[str, Conversation] = OrderedDict()
        self._forgotten: OrderedDict[str, None] = OrderedDict()
        self._open_pages: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, name: str | None) -> Conversation | None:
        """The conversation of a page, if there is one."""
        with self._lock:
            return self._kept.get(name or "")

    def of(self, name: str | None, owner: Owner = NOBODY) -> Conversation:
        """The conversation of a page; a new one where there is none.

        Raises:
            ValueError: when there is no room for another one.
        """
        if not name:
            raise ValueError("this request belongs to no session; open the page, or use gradio's client")
        with self._lock:
            if self.closing:
                raise ValueError("the server is being shut down")
            if name not in self._kept:
                self._make_room_for_one(owner)
                self._kept[name] = Conversation(self.engines, self.store, owner)
                self._kept[name].forgotten = self._forgotten.pop(name, 0) is None
            self._kept.move_to_end(name)
            conversation = self._kept[name]
            conversation.used = time.monotonic()
            conversation.returned = conversation.returned or conversation.left
            self._cool()
            return conversation

    def _cool(self) -> None:
        for conversation in list(self._kept.values())[:-WARM]:
            conversation.rest()

    def _make_room_for_one(self, owner: Owner) -> None:
        while len(self._kept) >= MOST:
            first = first_to_go([self._held(name, 1) for name in self._kept], owner, 1)
            if first is None:
                raise ValueError("too many people are here at the moment; try again in a few minutes")
            first.drop()

    def _held(self, name: str, size: int) -> Held:
        """A conversation as something that takes room: those go first in which nothing was said, then those whose page
        is closed, then those that were left alone for longest."""
        conversation = self._kept[name]
        rank = (1.0, bool(conversation.turns), name in self._open_pages, conversation.used)
        drop = None if conversation.busy else functools.partial(self._forget, name)
        return Held(conversation.owner, size, rank, drop)

    def make_room(self, owner: Owner, size: int, upload: Upload | None = None) -> None:
        """See that so many bytes may be written for somebody: who holds most makes room, with uploads that wait (or are
        still coming) before conversations.

        Args:
            upload: what they are for, which may have to go itself.

        Raises:
            Full: when there is no room to be made.
        """
        with self._lock:
            while upload is None or not upload.dropped:
                try:
                    return self.store.check_room(size)
                except Full:
                    first = first_to_go(self._holding(), owner, size)
                    if first is None:
                        raise
                    first.drop()
            raise Full("others needed the room of this upload; try again in a few minutes")

    def _holding(self) -> list[Held]:
        """Everything that takes room on the disk."""
        folders = {conversation.folder: name for name, conversation in self._kept.items()}
        held = []
        for folder, size in self.store.usage().items():
            upload = self.store.uploads.get(folder)
            if upload is not None:
                held.append(Held(upload.owner, size, (0.0, upload.touched), functools.partial(self.store.drop, upload)))
            elif folder in folders:
                held.append(self._held(folders[folder], size))
            else:  # what gradio has copied, or a conversation that is just being loaded or put away
                drop = None if self.store.is_conversation(folder) else functools.partial(self.store.remove, folder)
                held.append(Held(NOBODY, size, (0.0, 0.0), drop))
        return held

    def _forget(self, name: str) -> None:
        conversation = self._kept.pop(name)
        conversation.close()
        if conversation.turns:
            self._forgotten[name] = None
        while len(self._forgotten) > REMEMBERED:
            self._forgotten.popitem(last=False)

    def arrive(self, name: str) -> None:
        """A page was opened."""
        with self._lock:
            self._open_pages[name] += 1
            if name in self._kept:
                self._kept[name].left = False

    def leave(self, name: str) -> None:
        """A page was closed: what is being said to it ends, and its conversation goes after a while."""
        with self._lock:
            self._open_pages[name] -= 1
            gone = self._open_pages[name] <= 0
            if gone:
                del self._open_pages[name]
            conversation = self._kept.get(name)
        if gone and conversation is not None:
            conversation.left, conversation.used = True, time.monotonic()
            conversation.stop()

    def sweep(self) -> None:
        """Forget conversations that were left alone for too long, and uploads that nobody asked about."""
        now = time.monotonic()
        with self._lock:
            for name, conversation in list(self._kept.items()):
                if not conversation.busy and now - conversation.used >= self._patience(name, conversation):
                    self._forget(name)
            self._cool()
        self.store.sweep()

    def _patience(self, name: str, conversation: Conversation) -> float:
        if name in self._open_pages:
            return IDLE_SECONDS
        return max(RETURNED_SECONDS, self.kept_seconds) if conversation.returned else self.kept_seconds

    def close(self, seconds: float = 5.0) -> None:
        """End all answers, wait for that, and forget everything."""
        with self._lock:
            self.closing = True
            everybody = list(self._kept.values())
        for conversation in everybody:
            conversation.stop()
        end = time.monotonic() + seconds
        while any(conversation.busy for conversation in everybody) and time.monotonic() < end:
            time.sleep(0.02)
        with self._lock:
            self._kept.clear()
        for conversation in everybody:
            conversation.close()
