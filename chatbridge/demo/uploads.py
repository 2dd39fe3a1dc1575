"""Files that are sent to the page. Each upload has a folder of a random name: gradio's own route names folders by
content, so that whoever has a file can tell, and see, that somebody else has sent it."""

from __future__ import annotations

import asyncio
import errno
import logging
import time

from gradio.route_utils import MultiPartException, upload_fn
from gradio.routes import file_upload_statuses
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Message, Receive, Scope

from chatbridge.demo.files import Full, Upload
from chatbridge.demo.room import OWNER
from chatbridge.demo.visitors import Visitors
from chatbridge.web.request_bodies import BodyTooLarge

logger = logging.getLogger("chatbridge")

SLACK = 2**20
"""Bytes around the files of an upload."""


class Uploads:
    """Takes uploads.

    Args:
        visitors: who send them, and who make room.
    """

    def __init__(self, visitors: Visitors):
        self.visitors, self.limits = visitors, visitors.store.limits
        self.most = self.limits.max_count * self.limits.max_bytes + SLACK
        self._step = min(2**20, self.limits.max_bytes // 4)  # bytes after which is looked at what room there is

    async def take(self, scope: Scope, receive: Receive, upload_id: str | None) -> Response:
        """The paths of what is sent, as gradio's pages want to be told."""
        length = dict(scope["headers"]).get(b"content-length", b"")
        size = int(length) if length.isdigit() else self.limits.max_bytes
        upload: Upload | None = None
        files: list[str] | None = None
        try:
            if size > self.most:
                raise BodyTooLarge
            await asyncio.to_thread(self.visitors.make_room, scope[OWNER], size)
            store = self.visitors.store
            upload = store.uploads[store.upload_folder(scope[OWNER], size)]
            request = Request(scope, self._watched(receive, upload))
            files, _, _ = await upload_fn(
                request, str(upload.folder), self.limits.max_bytes, upload_id, True,
                file_upload_statuses if upload_id else None,
            )  # fmt: skip
            return JSONResponse([str(file) for file in files])
        except Full as error:
            return PlainTextResponse(str(error), 503)
        except BodyTooLarge:
            return PlainTextResponse(f"This is more than the {self.most / 2**20:.0f} MiB that may be sent at once", 413)
        except MultiPartException as error:
            return PlainTextResponse(error.message, 413 if "maximum allowed size" in error.message else 400)
        except HTTPException as error:
            return PlainTextResponse(error.detail, error.status_code)
        except ClientDisconnect:
            raise
        except Exception as error:  # what is no upload makes gradio's parser raise almost anything
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                logger.error("an upload could not be kept: %s", error)
                return PlainTextResponse("this server has no room for further files at the moment", 503)
            return PlainTextResponse("this is no upload that can be read", 400)
        finally:
            if upload is not None and not files:
                self.visitors.store.drop(upload)

    def _watched(self, receive: Receive, upload: Upload) -> Receive:
        """What arrives, as long as there is room for it."""
        seen = checked = 0

        async def next_part() -> Message:
            nonlocal seen, checked
            message = await receive()
            seen += len(message.get("body", b""))
            upload.touched = time.monotonic()
            if seen > self.most:
                raise BodyTooLarge
            if upload.dropped or seen - checked >= self._step:
                checked = seen
                await asyncio.to_thread(self.visitors.make_room, upload.owner, 0, upload)
            return message

        return next_part
