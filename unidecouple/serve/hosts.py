"""Which hosts and origins a browser may use the server from: keeps web pages of other sites out."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from unidecouple.serve.errors import as_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_AUTHORITY = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[^\s:@/\[\]]+)(?::(?P<port>[0-9]{1,5}))?")
_PORTS = {"http": 80, "https": 443}


class HostGuard:
    """ASGI middleware. Refuses a Host header that is not allowed (DNS rebinding) and requests that another site's page sends.

    Always allowed are ``localhost``, names that end in ``.localhost``, loopback addresses, and ``hosts``. If one of ``hosts`` is
    a wildcard address (``0.0.0.0``, ``::``), so is any IP address, since only names can be rebound. Ports are not compared, as
    a container's may be mapped. A request without Host (HTTP/1.0) comes from no browser and passes.

    Args:
        app: what it guards.
        hosts: further names and addresses, without port.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        self.app = app
        self._hosts = {plain_host(host) for host in hosts}
        self._any_address = any(address is not None and address.is_unspecified for address in map(_address, self._hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's message, as ASGI calls it."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self.app(scope, receive, send)
            return
        message, code = refusal
        await as_response(403, message, code=code, headers={"Connection": "close"})(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[str, str] | None:
        """Why a request is refused, and the code of that; None where it is not."""
        given: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            given.setdefault(name, []).append(value.decode("latin-1").strip().lower())
        hosts = given.get(b"host", [])
        for host in hosts:
            if not self._allowed(host):
                message = f"the host {host[:128]!r} is not allowed; to allow a name, start the server with --allowed-host NAME"
                return message, "host_not_allowed"
        if scope["method"] in _SAFE_METHODS:
            return None
        origins = given.get(b"origin", [])
        same_origin = all(any(_same_origin(origin, host) for host in hosts) for origin in origins)
        if not same_origin or not set(given.get(b"sec-fetch-site", [])) <= {"same-origin", "none"}:
            site = origins[0][:128] if origins else "another site"
            return f"a page of {site!r} may not send {scope['method']} to this server", "cross_site_request"
        return None

    def _allowed(self, authority: str) -> bool:
        found = _AUTHORITY.fullmatch(authority)
        if found is None:
            return False
        host = plain_host(found["host"])
        if host in self._hosts or host == "localhost" or host.endswith(".localhost"):
            return True
        address = _address(host)
        return address is not None and (address.is_loopback or self._any_address)


def plain_host(host: str) -> str:
    """A host in the one form that is compared: lower case, no brackets, no final dot; addresses as ``ipaddress`` writes them."""
    plain = host.strip().lower().removeprefix("[").removesuffix("]")
    address = _address(plain)
    return plain.removesuffix(".") if address is None else str(address)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _same_origin(origin: str, host: str) -> bool:
    """Whether an Origin header names the host and port of a Host header; ``null`` names none."""
    scheme, _, authority = origin.partition("://")
    one, other = _AUTHORITY.fullmatch(authority), _AUTHORITY.fullmatch(host)
    if one is None or other is None or scheme not in _PORTS:
        return False
    ports = [int(found["port"] or _PORTS[scheme]) for found in (one, other)]
    return ports[0] == ports[1] and plain_host(one["host"]) == plain_host(other["host"])
