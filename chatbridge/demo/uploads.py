"""Receives uploads, each into a folder with a random name. (Gradio's own route names folders by content, which would
reveal to the owner of a file that somebody else has uploaded it.)"""

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

from chatbridge.demo.conversation_store import ConversationStore
from chatbridge.demo.fair_share import OWNER
from chatbridge.demo.file_store import StoreFull, Upload
from chatbridge.web.request_bodies import BodyTooLarge

logger = logging.getLogger("chatbridge")

SLACK = 2**20
"""Bytes of an upload besides its files."""


class UploadHandler:
    """Handles upload requests; conversations make room for them."""

    def __init__(self, conversations: ConversationStore):
        self.conversations, self.limits = conversations, conversations.store.limits
        self.most = self.limits.max_count * self.limits.max_bytes + SLACK
        self._step = min(2**20, self.limits.max_bytes // 4)  # bytes between two checks of the free space

    async def take(self, scope: Scope, receive: Receive, upload_id: str | None) -> Response:
        """Receive files; responds with their paths, as gradio's pages expect."""
        length = dict(scope["headers"]).get(b"content-length", b"")
        size = int(length) if length.isdigit() else self.limits.max_bytes
        upload: Upload | None = None
        files: list[str] | None = None
        try:
            if size > self.most:
                raise BodyTooLarge
            await asyncio.to_thread(self.conversations.make_room, scope[OWNER], size)
            store = self.conversations.store
            upload = store.uploads[store.upload_folder(scope[OWNER], size)]
            request = Request(scope, self._monitored(receive, upload))
            files, _, _ = await upload_fn(
                request, str(upload.folder), self.limits.max_bytes, upload_id, True,
                file_upload_statuses if upload_id else None,
            )  # fmt: skip
            return JSONResponse([str(file) for file in files])
        except StoreFull as error:
            return PlainTextResponse(str(error), 503)
        except BodyTooLarge:
            return PlainTextResponse(f"This is more than the {self.most / 2**20:.0f} MiB that may be sent at once", 413)
        except MultiPartException as error:
            return PlainTextResponse(error.message, 413 if "maximum allowed size" in error.message else 400)
        except HTTPException as error:
            return PlainTextResponse(error.detail, error.status_code)
        except ClientDisconnect:
            raise
        except Exception as error:  # malformed uploads make gradio's parser raise almost anything
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                logger.error("an upload could not be kept: %s", error)
                return PlainTextResponse("this server has no room for further files at the moment", 503)
            return PlainTextResponse("this is no upload that can be read", 400)
        finally:
            if upload is not None and not files:
                self.conversations.store.drop(upload)

    def _monitored(self, receive: Receive, upload: Upload) -> Receive:
        """A `receive` that enforces the limits while data arrive."""
        seen = checked = 0

        async def next_part() -> Message:
            nonlocal seen, checked
            message = await receive()
            seen += len(message.get("body", b""))
            upload.last_received = time.monotonic()
            if seen > self.most:
                raise BodyTooLarge
            if upload.dropped or seen - checked >= self._step:
                checked = seen
                await asyncio.to_thread(self.conversations.make_room, upload.owner, 0, upload)
            return message

        return next_part
