"""What keeps other sites away from a server on this machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SAFE = ("GET", "HEAD")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Lets through requests that name this server and come from its own page, and sends headers with every answer.

    A site that points a name of its own at this machine (DNS rebinding) is known by its name in ``Host``; one that
    sends a form here, by its ``Origin``. Programs other than browsers send no ``Origin`` and are let through.

    Args:
        app: What is guarded.
        hosts: Names of this server; ``localhost`` and addresses in numbers, which cannot be rebound, always are.
        headers: Sent with every answer besides :data:`HEADERS`.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], headers: Mapping[str, str]) -> None:
        self.app = app
        self.hosts = {"localhost", *(host.lower() for host in hosts)}
        self.headers = {**HEADERS, **headers}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        reason = self._against(scope["method"], Headers(scope=scope))
        answer = JSONResponse({"error": reason}, 403) if reason else self.app
        await answer(scope, receive, send_with_headers)

    def _against(self, method: str, headers: Headers) -> str:
        """Why a request is not let through; "" when it is."""
        host = headers.get("host", "")
        if not self._is_ours(host):
            return f"this server is not called {host!r}: start it with --allow-host to give it a name"
        origin = headers.get("origin")
        if method not in SAFE and origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return "requests of other sites are refused"
        return ""

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self.hosts or bool(ipaddress.ip_address(name))
        except ValueError:
            return False
