"""The server process: start, signals, graceful shutdown."""

from __future__ import annotations

import logging
import os
import sys
import time
from types import FrameType

from starlette.responses import Response

from chatbridge.serving.app import Endpoint, make_app
from chatbridge.serving.errors import ApiError
from chatbridge.web.access import AccessMiddleware, AccessOptions, KnownHosts
from chatbridge.web.connections import Connection
from chatbridge.web.http_server import HttpServer, address_of, listen

logger = logging.getLogger("chatbridge")

SHUTDOWN_SECONDS = 3.0
"""For cancelled answers to be sent, and for workers to leave their current step."""


class ApiConnection(Connection):
    """Sends OpenAI's error object for requests that were late, malformed or too many."""

    def error_body(self, status: int, message: str) -> tuple[str, bytes]:
        codes = {400: "invalid_request", 408: "timeout", 503: "overloaded"}
        answer = ApiError(status, message, codes[status]).response()
        return answer.media_type, answer.body


class Server(HttpServer):
    """Serves until SIGTERM or SIGINT; running answers then have `grace` seconds, or until a second signal, to finish.

    Args:
        endpoint: what is served. host, port: where it listens; port 0 takes a free one.
        access: further host names, and proxies.
    """

    def __init__(
        self, endpoint: Endpoint, host: str, port: int, grace: float = 3.0, access: AccessOptions | None = None
    ):
        self.endpoint, self.grace, self.access = endpoint, grace, access or AccessOptions()
        self.hosts = KnownHosts(host, self.access)
        app = AccessMiddleware(make_app(endpoint), self.hosts, self.access, _error_response, same_site_only=False)
        super().__init__(app, host, port, ApiConnection, round(grace + SHUTDOWN_SECONDS))

    @property
    def port(self) -> int:
        """The port it listens on, once it has started."""
        return self.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Refuse new requests and return from `run` when answers are finished; the second call cancels them."""
        self.endpoint.queue.close(0.0 if self.should_exit else self.grace)
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's: it raises the signal again after shutdown, so that the exit status is that of a failure.
        self.stop()

    async def startup(self, sockets: list | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or ():
            self.hosts.add(one.getsockname()[0])
        address = address_of(self.config.host, self.port)
        logger.info("serving '%s' at http://%s%s/v1", self.endpoint.options.model_name, address, self.access.prefix)

    def run_until_stopped(self) -> int:
        """Serve, and return the exit status. Ends the process if a worker still computes after `SHUTDOWN_SECONDS`."""
        try:
            sockets = listen(self.config.host, [self.config.port])
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        self.run(sockets)
        self.endpoint.queue.shut_down()
        end = time.monotonic() + SHUTDOWN_SECONDS
        while self.endpoint.queue.busy() and time.monotonic() < end:
            time.sleep(0.02)
        if self.endpoint.queue.busy():
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        return 0


def _error_response(status: int, message: str) -> Response:
    return ApiError(status, message, "unknown_host").response()
