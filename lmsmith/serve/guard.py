"""What every request passes before its route, and every response on its way out.

- **Host.** A page on the web can make its own name point to 127.0.0.1 and then read what a local
  server answers (DNS rebinding). Such a request has the page's name in its Host header. Accepted
  are IP addresses, localhost, the name that the server was bound to, and `--allowed-host`.
- **Origin.** Pages of other origins cannot use the server, not even without reading its answers.
- **Key.** With an API key, every route except the page and /health needs it as a bearer token.
- **Security headers**, and no CORS.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import time
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmsmith.serve import errors
from lmsmith.serve.answers import Disconnected
from lmsmith.serve.errors import ApiError
from lmsmith.serve.json_response import error_response
from lmsmith.serve.metrics import Metrics

log = logging.getLogger(__name__)

HEAD_BYTES = 32 << 10
MOST_HEADERS = 100
OPEN_ROUTES = {"/", "/health"}
SECURITY: Mapping[str, str] = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


class Guard:
    """ASGI middleware."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        routes: Iterable[str],
        api_key: str | None = None,
        allowed_hosts: Iterable[str] = (),
    ) -> None:
        """`routes`: paths that metrics name; all others count as "other"."""
        self._app, self._metrics, self._routes = app, metrics, frozenset(routes)
        self._key = None if api_key is None else api_key.encode("utf-8")
        self._hosts = {"localhost", *(host.lower().rstrip(".") for host in allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def secured(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, secured)
        except Disconnected:
            status = status or 499
        except Exception as error:
            found = errors.of(error)
            if found.status >= 500 and not isinstance(error, ApiError):
                log.exception("%s %s failed", scope["method"], ascii(scope["path"]))
            if status:  # the response has begun: the connection is closed
                raise
            await error_response(found)(scope, receive, secured)
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.answered(route, status)
            seconds = time.monotonic() - began
            path = ascii(scope["path"])[1:-1][:200]
            log.info("%s %s %d %.3f s", scope["method"], path, status, seconds)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        if size > HEAD_BYTES or len(scope["headers"]) > MOST_HEADERS:
            raise ApiError(431, "the headers of the request are too long.")
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_known(hosts[0]):
            raise ApiError(
                421,
                f"the Host header {', '.join(hosts)[:100]!a} is not a name of this server. Start "
                "it with --allowed-host NAME to accept another one.",
                code="unknown_host",
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit_safe(origin) != hosts[0].lower():
            raise ApiError(403, "requests from pages of other origins are refused.", code="origin")
        if self._key is not None and scope["path"] not in OPEN_ROUTES:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode("latin-1"), self._key)
            if scheme.lower() != "bearer" or not right:
                raise ApiError(
                    401,
                    "a valid API key is required: send the header Authorization: Bearer KEY.",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )

    def _is_known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        name = name.rstrip(".").lower()
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def urlsplit_safe(origin: str) -> str:
    """The host and port of an origin; empty if it has none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
