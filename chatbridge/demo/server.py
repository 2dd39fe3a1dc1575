"""Serves the page, and removes its files afterwards."""

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
from chatbridge.demo.conversation_store import KEPT_SECONDS, ConversationStore
from chatbridge.demo.examples import find_examples
from chatbridge.demo.file_store import FileStore
from chatbridge.demo.gateway import PageGateway
from chatbridge.demo.page import Page, PageText
from chatbridge.demo.style import CSS, SCRIPT, theme
from chatbridge.inference import Engine
from chatbridge.inference.limits import MediaLimits
from chatbridge.web.access import WILDCARD_ADDRESSES, AccessMiddleware, AccessOptions, KnownHosts
from chatbridge.web.http_server import HttpServer, address_of, listen

logger = logging.getLogger("chatbridge")

PORTS = range(INITIAL_PORT_VALUE, INITIAL_PORT_VALUE + TRY_NUM_PORTS)
"""The first free one is taken where none is given: gradio's, from 7860 on."""

MAX_MESSAGE_QUEUES = 2000
"""Pages whose messages about running events are kept."""

SWEEP_SECONDS = 2.0

DELIVERY_SECONDS = 5.0
"""At shutdown, for the last messages to reach the pages."""

FLUSH_SECONDS = 0.2
"""For the last of them to be written to its connection."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Where the page is served, and for how many.

    Attributes:
        host, port: where it listens; port None takes the first free one from 7860. share: make a public link, too.
        access: further host names, and proxies.
        max_waiting: questions in the queue. parallel: answers at a time.
        kept_seconds: how long a conversation outlives its page.

    Raises:
        ValueError: for limits below 1.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    share: bool = False
    max_waiting: int = 32
    parallel: int = 2
    kept_seconds: float = KEPT_SECONDS
    access: AccessOptions = field(default_factory=AccessOptions)

    def __post_init__(self) -> None:
        if self.max_waiting < 1 or self.parallel < 1:
            raise ValueError(
                f"{self.max_waiting} may wait and {self.parallel} are answered at a time; take 1 up for each"
            )


@dataclass
class RunningDemo:
    """A page that is being served.

    Attributes:
        address, public: its URLs; public is None without a public link.
    """

    address: str
    public: str | None
    conversations: ConversationStore


@contextmanager
def serve(
    engines: Sequence[Engine], loaded: LoadedConfig, text: PageText, limits: MediaLimits, options: DemoOptions
) -> Iterator[RunningDemo]:
    """Serve the page while the context is open; running answers are stopped when it closes.

    Args:
        engines: one model, or two to compare. loaded: the first one's configuration, for examples.

    Raises:
        ValueError: when it cannot listen there.
    """
    store = FileStore(limits)
    with _environment(store):
        try:
            conversations = ConversationStore(engines, store, options.kept_seconds)
            examples = find_examples(loaded, engines[0].modalities, store.root / "shared" / "drawn")
            examples = [type(one)(one.text, tuple(store.add_shared(file) for file in one.files)) for one in examples]
            page = Page(conversations, text, examples, options.parallel).build()
            page.queue(max_size=options.max_waiting, default_concurrency_limit=options.parallel)
            page._queue.pending_messages_per_session = _MessageQueues(page._queue.pending_event_ids_session)
            with _own_server(page, conversations, options) as hosts:
                _, address, public = page.launch(
                    server_name=options.host,
                    root_path=options.access.root_path.rstrip("/"),
                    share=options.share,
                    theme=theme(),
                    css=CSS,
                    head=SCRIPT,
                    prevent_thread_lock=True,
                    quiet=True,
                    show_error=False,
                    max_file_size=limits.max_bytes,
                    max_threads=max(8, 4 * options.parallel),
                    state_session_capacity=512,
                    footer_links=[],
                    run_history=False,
                    ssr_mode=False,
                    enable_monitoring=False,
                    pwa=False,
                    mcp_server=False,
                )
            hosts.add(urlsplit(public or "").hostname)
            cleanup = _CleanupThread(conversations)
            try:
                yield RunningDemo(address, public, conversations)
            finally:
                conversations.close()
                _wait_for_delivery(page._queue.pending_event_ids_session, conversations)
                cleanup.stop()
                page.close(verbose=False)
        finally:
            store.close()


class _ThreadServer(HttpServer):
    """Serves the page in a thread, as gradio expects of its server."""

    def start(self, sockets: list[socket.socket]) -> None:
        self._thread = threading.Thread(target=self.run, args=(sockets,), name="page", daemon=True)
        self._thread.start()
        while not self.started and self._thread.is_alive():
            time.sleep(0.002)

    def close(self) -> None:
        self.should_exit = True
        self._thread.join(timeout=5)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.close()  # heartbeats of open pages end in no other way
        await super().shutdown(sockets)


@contextmanager
def _own_server(page: gr.Blocks, conversations: ConversationStore, options: DemoOptions) -> Iterator[KnownHosts]:
    """While the context is open, gradio launches our server with our middleware: its own has no deadlines, and its
    application accepts no middleware in front of all routes. Gives the hosts that are answered."""
    sockets = listen(options.host, [options.port] if options.port is not None else PORTS)
    hosts = KnownHosts(options.host, options.access)
    usual = gradio.http_server.start_server

    def start(app: ASGIApp, **_: Any) -> tuple[str, int, str, _ThreadServer]:
        gateway = PageGateway(app, page, conversations, options.max_waiting, options.access.prefix)
        app = AccessMiddleware(gateway, hosts, options.access, _error_response, same_site_only=True)
        port = sockets[0].getsockname()[1]
        server = _ThreadServer(app, options.host, port)
        for one in sockets:
            hosts.add(one.getsockname()[0])
        server.start(sockets)
        shown = "localhost" if options.host in WILDCARD_ADDRESSES else options.host
        return options.host, port, f"http://{address_of(shown, port)}/", server

    gradio.http_server.start_server = start
    try:
        yield hosts
        assert isinstance(page.server, _ThreadServer), "gradio starts its server in another way than it did"
    finally:
        gradio.http_server.start_server = usual
        if not page.is_running:
            for one in sockets:
                one.close()


def _error_response(status: int, message: str) -> Response:
    return PlainTextResponse(message, status)


class _MessageQueues(dict):
    """Gradio's message queues by page, bounded in number: those of pages without running events are dropped first.

    Args:
        busy: running events by page.
    """

    def __init__(self, busy: dict[str, set[str]]):
        super().__init__()
        self._busy = busy

    def __setitem__(self, page: str, messages: Any) -> None:
        while page not in self and len(self) >= MAX_MESSAGE_QUEUES:
            first = next((one for one in self if not self._busy.get(one)), next(iter(self)))
            del self[first]
            self._busy.pop(first, None)
        super().__setitem__(page, messages)


def _wait_for_delivery(pending: dict[str, set[str]], conversations: ConversationStore) -> None:
    """Wait until every open page has received the end of its events (`pending`: events by page)."""
    if pending:
        end = time.monotonic() + DELIVERY_SECONDS
        while time.monotonic() < end and any(
            events and conversations.is_open(page) for page, events in list(pending.items())
        ):
            time.sleep(0.02)
        time.sleep(FLUSH_SECONDS)


class _CleanupThread(threading.Thread):
    """Regularly expires conversations and uploads."""

    def __init__(self, conversations: ConversationStore):
        super().__init__(name="cleanup", daemon=True)
        self._conversations, self._finish = conversations, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._finish.wait(SWEEP_SECONDS):
            try:
                self._conversations.sweep()
            except Exception:  # the thread must survive
                logger.exception("conversations could not be expired")

    def stop(self) -> None:
        self._finish.set()
        self.join()


@contextmanager
def _environment(store: FileStore) -> Iterator[None]:
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
