"""Under which names and through which proxies the server and the page may be reached.

A browser sends along which host it believes to talk to, and from which page a request comes. A page of somebody else's
can let its own name point to 127.0.0.1 and so reach what listens there ("DNS rebinding"); such a request names a host
that is not ours. Addresses in figures cannot be pointed elsewhere.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_ROOT = re.compile(r"(https?://[A-Za-z0-9._-]+(:[0-9]+)?|https?://\[[0-9A-Fa-f:.]+\](:[0-9]+)?)?(/[A-Za-z0-9._~-]+)*")

EVERYWHERE = ("0.0.0.0", "::")
"""Addresses that stand for all addresses of a machine."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """How one is reached from elsewhere.

    Attributes:
        allowed_hosts: names besides those of the machine itself; ``*.x.org`` is every name below x.org, ``*`` any name.
        root_path: where a reverse proxy shows it, ``/chat`` or ``https://x.org/chat``.
        trusted_proxies: addresses or networks (``10.0.0.0/8``, ``*``) whose X-Forwarded-For, -Proto and -Host are
            believed; nobody's are without.

    Raises:
        ValueError: for what is none of these.
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
        """The path before those of our own; "" for none."""
        return urlsplit(self.root_path).path.rstrip("/")


class Names:
    """Which hosts we are.

    Args:
        host: where it listens. access: other names.
    """

    def __init__(self, host: str, access: Access):
        self._any = "*" in access.allowed_hosts
        self._everywhere = host in EVERYWHERE
        own = socket.gethostname().lower()
        self._ours = {"localhost", _plain(host)}
        if self._everywhere:
            self._ours |= {own, own.partition(".")[0], f"{own.partition('.')[0]}.local"}
        self._named = {_plain(name) for name in access.allowed_hosts if not name.startswith("*")}
        self._below = tuple(name[1:].lower() for name in access.allowed_hosts if name.startswith("*."))
        self.add(urlsplit(access.root_path).hostname)

    def add(self, name: str | None) -> None:
        """Be known under a further name or address."""
        if name:
            self._named.add(_plain(name))

    def are(self, header: str) -> bool:
        """Whether a request's Host is one of ours."""
        found = _split(header)
        if found is None:
            return False
        name, address = found[0], _address(found[0])
        if address is not None and (self._everywhere or _is_loopback(address)):
            return True
        return name in self._ours or self._is_named(name)

    def _is_named(self, name: str) -> bool:
        return self._any or name in self._named or name.endswith(self._below)

    def shown_by(self, origin: str, header: str) -> bool:
        """Whether a page of that Origin is ours, for a request to that Host: of the same name and port, or of a name
        that was allowed."""
        scheme, sign, place = origin.partition("://")
        page, asked = _split(place), _split(header)
        if not sign or scheme not in ("http", "https") or page is None or asked is None:
            return False
        return _usual(page) == _usual(asked) or self._is_named(page[0])


def add_arguments(parser: ArgumentParser) -> None:
    """Options that say how one is reached; `from_arguments` reads them."""
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


def from_arguments(args: Namespace) -> Access:
    """What a command line says about it.

    Raises:
        ValueError: for what cannot be.
    """
    return Access(allowed_hosts=args.allowed_host, root_path=args.root_path, trusted_proxies=args.trusted_proxy)


def _split(host: str) -> tuple[str, str] | None:
    """Name and port of a Host header; None for what is none."""
    found = _HOST.fullmatch(host)
    return None if found is None else (_plain(found[1]), found[2] or "")


def _plain(name: str) -> str:
    """A name or address in the form in which it is compared."""
    name = name.strip("[]").lower().removesuffix(".")
    return str(_address(name) or name)


def _usual(place: tuple[str, str]) -> tuple[str, str]:
    """Without the port that a scheme has anyway; a proxy may take TLS off."""
    return place[0], "" if place[1] in ("80", "443") else place[1]


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _is_loopback(address: Address) -> bool:
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _address(name: str) -> Address | None:
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None
