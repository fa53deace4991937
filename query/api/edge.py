"""What every request passes first and every answer last: limits of size, request ids, security headers, counts, the access
log. Plain ASGI: Starlette's own base class costs a task and a queue for each request."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra import logs
from query.api import tracing
from query.api.problems import Problem
from query.api.tracing import Tracing

MAX_QUERY_BYTES, MAX_BODY_BYTES = 32 << 10, 64 << 10
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNLOGGED = ("/healthz", "/readyz", "/metrics")
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# The dashboard is one page with its script in it.
_PAGE = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_DOCS = "default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
_NUMBERS = "default-src 'none'; frame-ancestors 'none'"
Answered = Callable[[str, int, float], None]


class Edge:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, *, answered: Answered, traced: Tracing, log: bool, tls: bool) -> None:
        """`answered(route, status, seconds)` counts; `log`: a line for each request; `tls`: browsers must insist on it."""
        self._app, self._answered, self._tracing, self._tls = app, answered, traced, tls
        self._log = logs.get("http") if log else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, size = time.perf_counter(), 500, 0
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        path = scope["path"]

        async def finish(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                found = MutableHeaders(scope=message)
                found["X-Request-ID"] = request_id
                for name, value in _SECURITY.items():
                    found.setdefault(name, value)
                found.setdefault("Content-Security-Policy", _policy(path))
                if path.startswith("/v1"):
                    found.setdefault("Cache-Control", "no-store")
                if self._tls:
                    found.setdefault("Strict-Transport-Security", "max-age=31536000")
            else:
                size += len(message.get("body", b""))
            await send(message)

        with self._tracing.request(scope["method"], path, headers) as span:
            try:
                refused = _too_large(scope, headers)
                if refused is not None:
                    await refused.response()(scope, receive, finish)
                else:
                    await self._app(scope, receive, finish)
            finally:
                seconds = time.perf_counter() - started
                route = getattr(scope.get("route"), "path", "none")
                self._answered(route, status, seconds)
                tracing.finish(span, scope["method"], route, status)
                if self._log is not None and path not in _UNLOGGED:
                    trace_id, client = tracing.trace_id(span), scope.get("client")
                    self._log.info(
                        "request", method=scope["method"], path=path, query=scope["query_string"][:512].decode("latin-1"),
                        status=status, ms=round(seconds * 1000, 2), bytes=size, request_id=request_id,
                        key=scope.get("state", {}).get("key"), client=client[0] if client else None,
                        **({"trace_id": trace_id} if trace_id else {}),
                    )  # fmt: skip


def _policy(path: str) -> str:
    return _PAGE if path == "/" else _DOCS if path.startswith("/docs") else _NUMBERS


def _too_large(scope: Scope, headers: Headers) -> Problem | None:
    if len(scope["query_string"]) > MAX_QUERY_BYTES or len(scope["path"]) > MAX_QUERY_BYTES:
        return Problem(414, "too-long", f"an address may have {MAX_QUERY_BYTES} bytes")
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        return Problem(413, "too-large", "requests need no body")
    return None
