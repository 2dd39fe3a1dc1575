"""Errors in the form of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from chatbridge.inference.limits import LimitExceeded
from chatbridge.processors.base import MediaError


class ApiError(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP. message: what is wrong and what to do, for people.
        code: for programs, by OpenAI's names where it has one. param: the field of the request that is wrong.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers
        super().__init__(message)

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error object."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def media_error(error: MediaError, param: str | None = None) -> ApiError:
    """A medium that cannot be used: 413 for one that is too large, else 400."""
    if isinstance(error, LimitExceeded):
        return ApiError(413, str(error), "media_too_large", param)
    return ApiError(400, str(error), "invalid_media", param)


def internal_error() -> ApiError:
    """For failures of the server; the details are in the log only."""
    return ApiError(500, "the server failed to answer; its log says more", "internal_error")
