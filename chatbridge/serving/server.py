"""The process that listens: how it starts, and how it stops."""

from __future__ import annotations

import logging
import os
import sys
import time
from types import FrameType

import uvicorn

from chatbridge.serving.app import Endpoint, make_app

logger = logging.getLogger("chatbridge")

LEFT_TO_END = 3.0
"""Seconds that answers which were ended have to say so, and workers to come out of what they compute."""


class Server(uvicorn.Server):
    """Listens until SIGTERM or SIGINT; answers that are being given then have `grace` seconds to end by themselves.

    Args:
        endpoint: what is served. grace: in seconds; a second signal ends them at once.
    """

    def __init__(self, endpoint: Endpoint, host: str, port: int, grace: float = 3.0):
        self.endpoint, self.grace = endpoint, grace
        super().__init__(
            uvicorn.Config(
                make_app(endpoint),
                host=host,
                port=port,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=round(grace + LEFT_TO_END),
            )
        )

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
        logger.info(
            "serving '%s' at http://%s:%d/v1", self.endpoint.options.model_name, shown(self.config.host), self.port
        )

    def run_to_the_end(self) -> int:
        """Serve, and return the exit status. What still computes after the last second does not keep the process."""
        try:
            self.run()
        except SystemExit:  # uvicorn's own, when it cannot listen; it has logged why
            return 1
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


def shown(host: str) -> str:
    """An address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
