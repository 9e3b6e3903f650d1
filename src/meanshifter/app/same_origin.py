"""Requests that other pages of the browser send are refused, so that no web site can see images on this machine.

A site may send requests to a loopback address. It says so in Origin or Sec-Fetch-Site, unless it has its own name
resolve to that address (DNS rebinding), which then is in Host.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_names(host: str) -> frozenset[str] | None:
    """The names under which a server on `host` is addressed; None: those of the machine, and any IP address."""
    return LOOPBACK | {host} if is_loopback(host) else None


class SameOrigin:
    """ASGI middleware that answers 403 to requests of other origins, and adds headers to all answers."""

    def __init__(self, app: ASGIApp, names: frozenset[str] | None, headers: Mapping[str, str]) -> None:
        self._app, self._names, self._headers = app, names, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        refused = self._why_refused(Headers(scope=scope), scope["path"])
        answer = self._app if refused is None else PlainTextResponse(refused, 403)
        await answer(scope, receive, send_with_headers)

    def _why_refused(self, headers: Headers, path: str) -> str | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        name = _split(f"//{host}").hostname
        if name is None or not self._is_own(name):
            return f"Host: {host!r:.80} is not a name of this server; use the address that was printed"
        if origin is not None and _split(origin).netloc.lower() != host.lower():
            return f"Origin: {origin!r:.80} is another site"
        # a link from another page may open this one, but not use what is behind it
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and path != "/":
            return "Sec-Fetch-Site: requested by another site"
        return None

    def _is_own(self, name: str) -> bool:
        if self._names is not None:
            return name.lower() in self._names
        try:
            ip_address(name)
        except ValueError:
            return name.lower() in {"localhost", socket.gethostname().lower()}
        return True


def _split(url: str) -> SplitResult:
    """The parts of a URL; of an invalid one, none."""
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", "")
