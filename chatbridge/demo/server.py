"""Serves the page, and clears up after it."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import gradio.http_server
import gradio.routes
from gradio.http_server import INITIAL_PORT_VALUE, TRY_NUM_PORTS
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from chatbridge.common.config import LoadedConfig
from chatbridge.demo.examples import find
from chatbridge.demo.files import Store
from chatbridge.demo.guard import Guard
from chatbridge.demo.page import Page, Words
from chatbridge.demo.style import CSS, SCRIPT, theme
from chatbridge.demo.visitors import KEPT_SECONDS, Visitors
from chatbridge.inference import Engine
from chatbridge.inference.limits import MediaLimits
from chatbridge.web.access import WILDCARD_ADDRESSES, AccessMiddleware, AccessOptions, KnownHosts
from chatbridge.web.http_server import HttpServer, address_of, listen

logger = logging.getLogger("chatbridge")

PORTS = range(INITIAL_PORT_VALUE, INITIAL_PORT_VALUE + TRY_NUM_PORTS)
"""The first free one is taken where none is given: gradio's, from 7860 on."""

MAILBOXES = 2000
"""Pages that are told how their events go on."""

SWEEP_SECONDS = 2.0

LAST_WORDS = 5.0
"""Seconds at most between the end of the last answer and that of the server: what was said is still on its way."""

WRITTEN = 0.2
"""Seconds that a message then has to go out."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Where the page is served, and for how many.

    Attributes:
        host, port: where it listens; port None takes the first free one from 7860. share: also by a public link.
        access: other names that it is reached under, and proxies.
        waiting: questions that may wait for their turn. parallel: answers that are given at a time.
        kept_seconds: how long a conversation outlives its page.

    Raises:
        ValueError: for numbers that let nobody in.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    share: bool = False
    waiting: int = 32
    parallel: int = 2
    kept_seconds: float = KEPT_SECONDS
    access: AccessOptions = field(default_factory=AccessOptions)

    def __post_init__(self) -> None:
        if self.waiting < 1 or self.parallel < 1:
            raise ValueError(f"{self.waiting} may wait and {self.parallel} are answered at a time; take 1 up for each")


@dataclass
class Running:
    """A page that is being served.

    Attributes:
        address, public: where it is; public is None without a public link. visitors: who is there.
    """

    address: str
    public: str | None
    visitors: Visitors


@contextmanager
def serve(
    engines: Sequence[Engine], loaded: LoadedConfig, words: Words, limits: MediaLimits, serving: Serving
) -> Iterator[Running]:
    """The page, as long as the context is open; answers that are being given when it closes are ended first.

    Args:
        engines: one model, or two to compare. loaded: the first one's configuration, for examples.

    Raises:
        ValueError: when it cannot listen there.
    """
    store = Store(limits)
    with _environment(store):
        try:
            visitors = Visitors(engines, store, serving.kept_seconds)
            examples = find(loaded, engines[0].modalities, store.root / "kept" / "made")
            examples = [type(one)(one.text, tuple(store.keep(file) for file in one.files)) for one in examples]
            page = Page(visitors, words, examples, serving.parallel).build()
            page.queue(max_size=serving.waiting, default_concurrency_limit=serving.parallel)
            page._queue.pending_messages_per_session = _Mailboxes(page._queue.pending_event_ids_session)
            with _listening(page, visitors, serving) as names:
                _, address, public = page.launch(
                    server_name=serving.host,
                    root_path=serving.access.root_path.rstrip("/"),
                    share=serving.share,
                    theme=theme(),
                    css=CSS,
                    head=SCRIPT,
                    prevent_thread_lock=True,
                    quiet=True,
                    show_error=False,
                    max_file_size=limits.max_bytes,
                    max_threads=max(8, 4 * serving.parallel),
                    state_session_capacity=512,
                    footer_links=[],
                    run_history=False,
                    ssr_mode=False,
                    enable_monitoring=False,
                    pwa=False,
                    mcp_server=False,
                )
            names.add(urlsplit(public or "").hostname)
            sweeper = _Sweeper(visitors)
            try:
                yield Running(address, public, visitors)
            finally:
                visitors.close()
                _wait_for_last_words(page._queue.pending_event_ids_session)
                sweeper.stop()
                page.close(verbose=False)
        finally:
            store.close()


class _Server(HttpServer):
    """Serves the page in a thread, as gradio expects of its server."""

    def start(self, sockets: list[socket.socket]) -> None:
        self._thread = threading.Thread(target=self.run, args=(sockets,), name="page", daemon=True)
        self._thread.start()
        while not self.started and self._thread.is_alive():
            time.sleep(0.002)

    def close(self) -> None:
        self.should_exit = True
        self._thread.join(timeout=5)


@contextmanager
def _listening(page: gr.Blocks, visitors: Visitors, serving: Serving) -> Iterator[KnownHosts]:
    """While it is open, what gradio launches is served by a server of ours, behind a guard: gradio's own has no time
    limits, and no way to put something before all of its application. Gives the names that are answered to."""
    sockets = listen(serving.host, [serving.port] if serving.port is not None else PORTS)
    names = KnownHosts(serving.host, serving.access)
    usual = gradio.http_server.start_server

    def start(app: ASGIApp, **_: Any) -> tuple[str, int, str, _Server]:
        guard = Guard(app, page, visitors, serving.waiting, serving.access.prefix)
        entrance = AccessMiddleware(guard, names, serving.access, _refuse, same_site_only=True)
        port = sockets[0].getsockname()[1]
        server = _Server(entrance, serving.host, port)
        for one in sockets:
            names.add(one.getsockname()[0])
        server.start(sockets)
        shown = "localhost" if serving.host in WILDCARD_ADDRESSES else serving.host
        return serving.host, port, f"http://{address_of(shown, port)}/", server

    gradio.http_server.start_server = start
    try:
        yield names
        assert isinstance(page.server, _Server), "gradio starts its server in another way than it did"
    finally:
        gradio.http_server.start_server = usual
        if not page.is_running:
            for one in sockets:
                one.close()


def _refuse(status: int, message: str) -> Response:
    return PlainTextResponse(message, status)


class _Mailboxes(dict):
    """What pages are still to be told, by page; of too many, those go first for which nothing is being done.

    Args:
        busy: events that are being dealt with, by page.
    """

    def __init__(self, busy: dict[str, set[str]]):
        super().__init__()
        self._busy = busy

    def __setitem__(self, page: str, messages: Any) -> None:
        while page not in self and len(self) >= MAILBOXES:
            first = next((one for one in self if not self._busy.get(one)), next(iter(self)))
            del self[first]
            self._busy.pop(first, None)
        super().__setitem__(page, messages)


def _wait_for_last_words(pending: dict[str, set[str]]) -> None:
    """Until every page that listens was told how its events ended (`pending`: events by page)."""
    if pending:
        end = time.monotonic() + LAST_WORDS
        while any(list(pending.values())) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(WRITTEN)


class _Sweeper(threading.Thread):
    """Forgets what nobody comes back to."""

    def __init__(self, visitors: Visitors):
        super().__init__(name="sweeper", daemon=True)
        self._visitors, self._over = visitors, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(SWEEP_SECONDS):
            try:
                self._visitors.sweep()
            except Exception:  # nobody else would clear up from then on
                logger.exception("files could not be cleared up")

    def stop(self) -> None:
        self._over.set()
        self.join()


@contextmanager
def _environment(store: Store) -> Iterator[None]:
    """Gradio's settings, which it reads from the environment."""
    ours = {
        "GRADIO_TEMP_DIR": str(store.root),
        "GRADIO_EXAMPLES_CACHE": str(store.root / "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_ALLOWED_PATHS": "",
    }
    before, temporary = {name: os.environ.get(name) for name in ours}, gradio.routes.DEFAULT_TEMP_DIR
    os.environ |= ours
    gradio.routes.DEFAULT_TEMP_DIR = str(store.root)  # read when gradio is imported, and made when a page is built
    try:
        yield
    finally:
        gradio.routes.DEFAULT_TEMP_DIR = temporary
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
