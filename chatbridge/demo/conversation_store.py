"""The conversations of all open pages, found by gradio's session hash; how long they are kept, and what they use."""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence

from chatbridge.demo.conversation import Conversation
from chatbridge.demo.fair_share import NO_OWNER, Allocation, Owner, choose_eviction
from chatbridge.demo.file_store import FileStore, StoreFull, Upload
from chatbridge.inference import Engine

MAX_CONVERSATIONS = 256
"""For further ones, others are evicted as fair_share.py says."""

MAX_CACHED = 4
"""Conversations whose keys and values are kept for a quick next turn (a gigabyte and more each, for large models)."""

KEPT_SECONDS = 120.0
"""How long a conversation outlives its page: phones drop the connection whenever another app is in front."""

RESUMED_SECONDS = 1800.0
"""The same after its page has come back: gradio's pages do not report that they are open any more then."""

IDLE_SECONDS = 6 * 3600.0
"""How long a page may be open without a request."""

MAX_EXPIRED = 4096
"""Session hashes of expired conversations, so that their pages can be told."""


class ConversationStore:
    """Conversations by session hash, which only the page itself knows.

    Args:
        engines, store: what conversations are made of. kept_seconds: how long one outlives its page.

    Attributes:
        closing: whether the server is shutting down.
    """

    def __init__(self, engines: Sequence[Engine], store: FileStore, kept_seconds: float = KEPT_SECONDS):
        self.engines, self.store, self.kept_seconds = engines, store, kept_seconds
        self.closing = False
        self._kept: OrderedDict[str, Conversation] = OrderedDict()
        self._expired: OrderedDict[str, None] = OrderedDict()
        self._open_pages: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, name: str | None) -> Conversation | None:
        """The conversation of a page, if there is one."""
        with self._lock:
            return self._kept.get(name or "")

    def of(self, name: str | None, owner: Owner = NO_OWNER) -> Conversation:
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
                self._evict_for_one(owner)
                self._kept[name] = Conversation(self.engines, self.store, owner)
                self._kept[name].expired = self._expired.pop(name, 0) is None
            self._kept.move_to_end(name)
            conversation = self._kept[name]
            conversation.last_used = time.monotonic()
            conversation.resumed = conversation.resumed or conversation.page_closed
            self._release_caches()
            return conversation

    def _release_caches(self) -> None:
        for conversation in list(self._kept.values())[:-MAX_CACHED]:
            conversation.release_cache()

    def _evict_for_one(self, owner: Owner) -> None:
        while len(self._kept) >= MAX_CONVERSATIONS:
            evicted = choose_eviction([self._allocation(name, 1) for name in self._kept], owner, 1)
            if evicted is None:
                raise ValueError("too many people are here at the moment; try again in a few minutes")
            evicted.free()

    def _allocation(self, name: str, size: int) -> Allocation:
        """Empty conversations are evicted first, then those whose page is closed, then the least recently used."""
        conversation = self._kept[name]
        rank = (1.0, bool(conversation.turns), name in self._open_pages, conversation.last_used)
        free = None if conversation.busy else functools.partial(self._expire, name)
        return Allocation(conversation.owner, size, rank, free)

    def make_room(self, owner: Owner, size: int, upload: Upload | None = None) -> None:
        """Evict until so many bytes may be written for an owner: pending and incomplete uploads before conversations.

        Args:
            upload: what the bytes are for, which may be evicted itself.

        Raises:
            StoreFull: when nothing more may be evicted.
        """
        with self._lock:
            while upload is None or not upload.dropped:
                try:
                    return self.store.check_room(size)
                except StoreFull:
                    evicted = choose_eviction(self._allocations(), owner, size)
                    if evicted is None:
                        raise
                    evicted.free()
            raise StoreFull("others needed the room of this upload; try again in a few minutes")

    def _allocations(self) -> list[Allocation]:
        """Everything that takes disk space."""
        folders = {conversation.folder: name for name, conversation in self._kept.items()}
        found = []
        for folder, size in self.store.usage().items():
            upload = self.store.uploads.get(folder)
            if upload is not None:
                free = functools.partial(self.store.drop, upload)
                found.append(Allocation(upload.owner, size, (0.0, upload.last_received), free))
            elif folder in folders:
                found.append(self._allocation(folders[folder], size))
            else:  # a copy of gradio's, or a conversation that is just being loaded or removed
                free = None if self.store.is_conversation(folder) else functools.partial(self.store.remove, folder)
                found.append(Allocation(NO_OWNER, size, (0.0, 0.0), free))
        return found

    def _expire(self, name: str) -> None:
        conversation = self._kept.pop(name)
        conversation.close()
        if conversation.turns:
            self._expired[name] = None
        while len(self._expired) > MAX_EXPIRED:
            self._expired.popitem(last=False)

    def page_opened(self, name: str) -> None:
        with self._lock:
            self._open_pages[name] += 1
            if name in self._kept:
                self._kept[name].page_closed = False

    def is_open(self, name: str) -> bool:
        """Whether its page is there, or may be: one that has come back does not report it."""
        conversation = self._kept.get(name)
        return name in self._open_pages or (conversation is not None and conversation.resumed)

    def page_closed(self, name: str) -> None:
        """Its answer ends, and its conversation expires after a while."""
        with self._lock:
            self._open_pages[name] -= 1
            closed = self._open_pages[name] <= 0
            if closed:
                del self._open_pages[name]
            conversation = self._kept.get(name)
        if closed and conversation is not None:
            conversation.page_closed, conversation.last_used = True, time.monotonic()
            conversation.stop()

    def sweep(self) -> None:
        """Expire conversations that were not used for too long, and remove uploads that were never sent."""
        now = time.monotonic()
        with self._lock:
            for name, conversation in list(self._kept.items()):
                if not conversation.busy and now - conversation.last_used >= self._lifetime(name, conversation):
                    self._expire(name)
            self._release_caches()
        self.store.sweep()

    def _lifetime(self, name: str, conversation: Conversation) -> float:
        if name in self._open_pages:
            return IDLE_SECONDS
        return max(RESUMED_SECONDS, self.kept_seconds) if conversation.resumed else self.kept_seconds

    def close(self, seconds: float = 5.0) -> None:
        """Stop all answers, wait for their end, and remove everything."""
        with self._lock:
            self.closing = True
            everything = list(self._kept.values())
        for conversation in everything:
            conversation.stop()
        end = time.monotonic() + seconds
        while any(conversation.busy for conversation in everything) and time.monotonic() < end:
            time.sleep(0.02)
        with self._lock:
            self._kept.clear()
        for conversation in everything:
            conversation.close()
