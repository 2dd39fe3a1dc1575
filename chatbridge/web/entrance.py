"""What every request passes first: proxies, the host it is for, the page it comes from, the path below a proxy's."""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from chatbridge.web.access import Access, Names

FORWARDED = (b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port", b"x-forwarded-prefix")
FORWARDED += (b"forwarded", b"x-real-ip", b"x-gradio-server")
"""Headers in which proxies say who asks for what; anybody can send them."""

READING = ("GET", "HEAD")

Refusal = Callable[[int, str], ASGIApp]
"""From a status and a message for people to an answer."""


class Entrance:
    """Wraps an application (ASGI).

    Args:
        app: what answers. names: which hosts we are. access: proxies, and the path that they show us at.
        refuse: makes an answer to those who are not let in.
        pages_only: let requests that change something come only from pages of ours (or from no page).
    """

    def __init__(self, app: ASGIApp, names: Names, access: Access, refuse: Refusal, pages_only: bool):
        self.app, self.names, self.refuse, self.pages_only = app, names, refuse, pages_only
        self._prefix = access.prefix
        self._believing = ProxyHeadersMiddleware(self._enter, list(access.trusted_proxies))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # nothing here speaks it
        else:
            client = scope["client"][0] if scope.get("client") else None
            if client in self._believing.trusted_hosts:
                public = dict(scope["headers"]).get(b"x-forwarded-host", b"").split(b",")[0].strip()
                if public:
                    _replace(scope, b"host", public)
            else:
                scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in FORWARDED]
            await self._believing(scope, receive, send)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if not self.names.are(host):
            named = f" '{host[:100]}'" if host.isascii() and host.isprintable() else ""
            app = self.refuse(400, f"the host{named} is not known here; start with --allowed-host NAME to allow it")
        elif self.pages_only and scope["method"] not in READING and origin and not self.names.shown_by(origin, host):
            app = self.refuse(403, "this comes from a page of another site; start with --allowed-host NAME to allow it")
        else:
            # Nobody behind answers an origin (CORS): pages of other sites are not to read what is said here.
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"origin"]
            app = self._below_prefix(scope)
        await app(scope, receive, send)

    def _below_prefix(self, scope: Scope) -> ASGIApp:
        """Take the proxy's path off, where the proxy has not done so."""
        if self._prefix and scope["path"] == self._prefix:
            return RedirectResponse(self._prefix + "/")
        if self._prefix and scope["path"].startswith(self._prefix + "/"):
            scope["path"] = scope["path"].removeprefix(self._prefix)
            scope["raw_path"] = scope["raw_path"].removeprefix(self._prefix.encode())
        return self.app


def _replace(scope: Scope, name: bytes, value: bytes) -> None:
    scope["headers"] = [*(pair for pair in scope["headers"] if pair[0] != name), (name, value)]
