"""The process that listens: how it starts, and how it stops."""

from __future__ import annotations

import logging
import os
import sys
import time
from types import FrameType

from starlette.responses import Response

from chatbridge.serving.app import Endpoint, make_app
from chatbridge.serving.errors import ApiError
from chatbridge.web.access import Access, Names
from chatbridge.web.connections import Connection
from chatbridge.web.entrance import Entrance
from chatbridge.web.listening import Listener, address_of, listen

logger = logging.getLogger("chatbridge")

LEFT_TO_END = 3.0
"""Seconds that answers which were ended have to say so, and workers to come out of what they compute."""


class ApiConnection(Connection):
    """Says in OpenAI's words, too, that a request was late, one too many, or none."""

    def words(self, status: int, message: str) -> tuple[str, bytes]:
        codes = {400: "invalid_request", 408: "timeout", 503: "overloaded"}
        answer = ApiError(status, message, codes[status]).response()
        return answer.media_type, answer.body


class Server(Listener):
    """Listens until SIGTERM or SIGINT; answers that are being given then have `grace` seconds to end by themselves.

    Args:
        endpoint: what is served. host, port: where. grace: in seconds; a second signal ends them at once.
        access: other names that it is reached under, and proxies.
    """

    def __init__(self, endpoint: Endpoint, host: str, port: int, grace: float = 3.0, access: Access | None = None):
        self.endpoint, self.grace, self.access = endpoint, grace, access or Access()
        self.names = Names(host, self.access)
        app = Entrance(make_app(endpoint), self.names, self.access, _refuse, pages_only=False)
        super().__init__(app, host, port, ApiConnection, round(grace + LEFT_TO_END))

    @property
    def port(self) -> int:
        """Where it listens, once it has started; for port 0, the one that was free."""
        return self.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Take no more requests, let answers end, and return from `run`. Called again, it does not wait for them."""
        self.endpoint.desk.close(0.0 if self.should_exit else self.grace)
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn raises the signal again when it is done, which would make the exit status that of a failure.
        self.stop()

    async def startup(self, sockets: list | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or ():
            self.names.add(one.getsockname()[0])
        address = address_of(self.config.host, self.port)
        logger.info("serving '%s' at http://%s%s/v1", self.endpoint.options.model_name, address, self.access.prefix)

    def run_to_the_end(self) -> int:
        """Serve, and return the exit status. What still computes after the last second does not keep the process."""
        try:
            sockets = listen(self.config.host, [self.config.port])
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        self.run(sockets)
        self.endpoint.desk.shut_down()
        end = time.monotonic() + LEFT_TO_END
        while self.endpoint.desk.busy() and time.monotonic() < end:
            time.sleep(0.02)
        if self.endpoint.desk.busy():
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        return 0


def _refuse(status: int, message: str) -> Response:
    return ApiError(status, message, "unknown_host").response()
