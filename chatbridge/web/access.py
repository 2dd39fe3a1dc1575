"""Which hosts requests may name, which pages may send them, and which proxies are believed.

Another site can point its own name at 127.0.0.1 and so reach a local server through its visitors' browsers ("DNS
rebinding"). Such a request names that site as its host, so requests for unknown hosts are refused. Numeric addresses
cannot be redirected in this way.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_ROOT = re.compile(r"(https?://[A-Za-z0-9._-]+(:[0-9]+)?|https?://\[[0-9A-Fa-f:.]+\](:[0-9]+)?)?(/[A-Za-z0-9._~-]+)*")

WILDCARD_ADDRESSES = ("0.0.0.0", "::")
"""Listening there accepts connections to every address of the machine."""


@dataclass(frozen=True, kw_only=True)
class AccessOptions:
    """How clients and proxies reach a server.

    Attributes:
        allowed_hosts: host names besides the machine's own; ``*.x.org`` is every name below x.org, ``*`` any name.
        root_path: the path under which a reverse proxy serves it, ``/chat`` or ``https://x.org/chat``.
        trusted_proxies: addresses or networks (``10.0.0.0/8``, ``*``) whose X-Forwarded-For, -Proto and -Host are
            believed; without any, no client's are.

    Raises:
        ValueError: for a malformed name, path or address.
    """

    allowed_hosts: Sequence[str] = ()
    root_path: str = ""
    trusted_proxies: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in self.allowed_hosts:
            if name != "*" and not _NAME.fullmatch(name.lower().removeprefix("*.")) and _address(name) is None:
                raise ValueError(f"--allowed-host {name}: give a name or address without scheme, port and path")
        if not _ROOT.fullmatch(self.root_path.rstrip("/")):
            raise ValueError(f"--root-path {self.root_path}: give a path such as /chat, or https://x.org/chat")
        for proxy in self.trusted_proxies:
            try:
                if proxy != "*":
                    ipaddress.ip_network(proxy)
            except ValueError as error:
                raise ValueError(f"--trusted-proxy {proxy}: give an address or a network ({error})") from None

    @property
    def prefix(self) -> str:
        """The path of `root_path`; "" for none."""
        return urlsplit(self.root_path).path.rstrip("/")


class KnownHosts:
    """The host names and addresses that requests may name.

    Args:
        host: where the server listens. access: further names.
    """

    def __init__(self, host: str, access: AccessOptions):
        self._any = "*" in access.allowed_hosts
        self._wildcard = host in WILDCARD_ADDRESSES
        own = socket.gethostname().lower()
        self._own = {"localhost", _normalized(host)}
        if self._wildcard:
            self._own |= {own, own.partition(".")[0], f"{own.partition('.')[0]}.local"}
        self._allowed = {_normalized(name) for name in access.allowed_hosts if not name.startswith("*")}
        self._suffixes = tuple(name[1:].lower() for name in access.allowed_hosts if name.startswith("*."))
        self.add(urlsplit(access.root_path).hostname)

    def add(self, name: str | None) -> None:
        """Allow a further name or address."""
        if name:
            self._allowed.add(_normalized(name))

    def allow(self, header: str) -> bool:
        """Whether a request with this Host header may be answered."""
        found = _split(header)
        if found is None:
            return False
        name, address = found[0], _address(found[0])
        if address is not None and (self._wildcard or is_local(name)):
            return True
        return name in self._own or self._is_allowed_name(name)

    def _is_allowed_name(self, name: str) -> bool:
        return self._any or name in self._allowed or name.endswith(self._suffixes)

    def allow_origin(self, origin: str, header: str) -> bool:
        """Whether a page of this Origin may send a request to this Host: same name and port, or an allowed name."""
        scheme, sign, place = origin.partition("://")
        page, asked = _split(place), _split(header)
        if not sign or scheme not in ("http", "https") or page is None or asked is None:
            return False
        return _without_default_port(page) == _without_default_port(asked) or self._is_allowed_name(page[0])


FORWARDING_HEADERS = (
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-forwarded-port",
    b"x-forwarded-prefix",
)
FORWARDING_HEADERS += (b"forwarded", b"x-real-ip", b"x-gradio-server")
"""Headers by which proxies name the original client and host; any client can forge them."""

SAFE_METHODS = ("GET", "HEAD")

ErrorResponse = Callable[[int, str], ASGIApp]
"""Makes a response of a status and a message."""


class AccessMiddleware:
    """ASGI middleware: applies the headers of trusted proxies, checks host and origin, strips the proxy's path.

    Args:
        app: the application. hosts: those that are answered. access: proxies and their path.
        error_response: for requests that are refused.
        same_site_only: refuse requests other than GET and HEAD that pages of other sites send.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: KnownHosts,
        access: AccessOptions,
        error_response: ErrorResponse,
        same_site_only: bool,
    ):
        self.app, self.hosts, self.error_response, self.same_site_only = app, hosts, error_response, same_site_only
        self._prefix = access.prefix
        self._proxy_headers = ProxyHeadersMiddleware(self._check, list(access.trusted_proxies))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # no route uses websockets
        else:
            client = scope["client"][0] if scope.get("client") else None
            if client in self._proxy_headers.trusted_hosts:
                public = dict(scope["headers"]).get(b"x-forwarded-host", b"").split(b",")[0].strip()
                if public:
                    _replace(scope, b"host", public)
            else:
                scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in FORWARDING_HEADERS]
            await self._proxy_headers(scope, receive, send)

    async def _check(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        must_match = self.same_site_only and scope["method"] not in SAFE_METHODS and origin
        remedy = "start with --allowed-host NAME to allow it"
        if not self.hosts.allow(host):
            named = f" '{host[:100]}'" if host.isascii() and host.isprintable() else ""
            app = self.error_response(400, f"the host{named} is not known here; {remedy}")
        elif must_match and not self.hosts.allow_origin(origin, host):
            app = self.error_response(403, f"this comes from a page of another site; {remedy}")
        else:
            # Without an origin no application adds CORS headers: other sites' pages cannot read the responses.
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"origin"]
            app = self._strip_prefix(scope)
        await app(scope, receive, send)

    def _strip_prefix(self, scope: Scope) -> ASGIApp:
        """Remove the proxy's path where the proxy has not."""
        if self._prefix and scope["path"] == self._prefix:
            return RedirectResponse(self._prefix + "/")
        if self._prefix and scope["path"].startswith(self._prefix + "/"):
            scope["path"] = scope["path"].removeprefix(self._prefix)
            scope["raw_path"] = scope["raw_path"].removeprefix(self._prefix.encode())
        return self.app


def add_arguments(parser: ArgumentParser) -> None:
    """Command-line options for hosts and proxies; `from_arguments` reads them."""
    group = parser.add_argument_group("behind names and proxies (docs/serving.md)")
    group.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME",
        help="answer requests for this host, too: chat.example.org, *.example.org, * for any; may be given repeatedly",
    )  # fmt: skip
    group.add_argument(
        "--root-path", default="", metavar="PATH", help="where a reverse proxy shows it: /chat, https://x.org/chat"
    )
    group.add_argument(
        "--trusted-proxy", action="append", default=[], metavar="ADDRESS",
        help="believe this proxy's (or network's) X-Forwarded-For, -Proto and -Host; may be given repeatedly",
    )  # fmt: skip


def from_arguments(args: Namespace) -> AccessOptions:
    """The options of a command line.

    Raises:
        ValueError: for a malformed value.
    """
    return AccessOptions(allowed_hosts=args.allowed_host, root_path=args.root_path, trusted_proxies=args.trusted_proxy)


def _split(host: str) -> tuple[str, str] | None:
    """Name and port of a Host header; None for a malformed one."""
    found = _HOST.fullmatch(host)
    return None if found is None else (_normalized(found[1]), found[2] or "")


def _normalized(name: str) -> str:
    """A name or address in its canonical form."""
    name = name.strip("[]").lower().removesuffix(".")
    return str(_address(name) or name)


def _without_default_port(host: tuple[str, str]) -> tuple[str, str]:
    """Without the port if it is a scheme's default; proxies may terminate TLS."""
    return host[0], "" if host[1] in ("80", "443") else host[1]


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_local(host: str) -> bool:
    """Whether a host's name or address is that of this machine's loopback interface."""
    address = _address(host)
    if address is None:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _address(name: str) -> Address | None:
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None


def _replace(scope: Scope, name: bytes, value: bytes) -> None:
    scope["headers"] = [*(pair for pair in scope["headers"] if pair[0] != name), (name, value)]
