"""What every request passes first and every answer last: limits of size, request ids, security headers, counts, the access log.

Plain ASGI, and outside of FastAPI: an endpoint that only needs the request is called from here. FastAPI, which describes it and
serves everything else, takes longer for finding and calling it than most answers do.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra import logs
from query.api import tracing
from query.api.problems import EXPECTED, Problem, problem_of
from query.api.tracing import Tracing

MAX_QUERY_BYTES, MAX_BODY_BYTES = 32 << 10, 64 << 10
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNLOGGED = ("/healthz", "/readyz", "/metrics")
_SECURITY = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}
# The dashboard is one page with its script in it.
_PAGE = b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_DOCS = b"default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
_NUMBERS = b"default-src 'none'; frame-ancestors 'none'"
_TLS = (b"strict-transport-security", b"max-age=31536000")
_UNKEPT = (b"cache-control", b"no-store")
Answered = Callable[[str, int, float], None]
Endpoint = Callable[[Request], Awaitable[Response]]


class Edge:
    """Wraps the application."""

    def __init__(
        self, app: ASGIApp, direct: Mapping[str, Endpoint], *, answered: Answered, traced: Tracing, log: bool, tls: bool
    ) -> None:
        """`direct`: by path, what answers a GET without `app`. `answered(route, status, seconds)` counts; `log`: a line for
        each request; `tls`: browsers must insist on it."""
        self._app, self._direct, self._answered, self._tracing, self._tls = app, direct, answered, traced, tls
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
        endpoint = self._direct.get(path) if scope["method"] == "GET" else None

        async def finish(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                self._add_headers(path, message["headers"])
            else:
                size += len(message.get("body", b""))
            await send(message)

        with self._tracing.request(scope["method"], path, headers) as span:
            try:
                refused = _too_large(scope, headers)
                if refused is not None:
                    await refused.response()(scope, receive, finish)
                elif endpoint is not None:
                    await _answer(endpoint, scope, receive, finish)
                else:
                    await self._app(scope, receive, finish)
            finally:
                seconds = time.perf_counter() - started
                route = path if endpoint is not None else getattr(scope.get("route"), "path", "none")
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

    def _add_headers(self, path: str, headers: list[tuple[bytes, bytes]]) -> None:
        """Those that an answer has not set itself."""
        given = {name for name, _ in headers}
        added = [*_SECURITY.items(), (b"content-security-policy", _policy(path))]
        added += [_UNKEPT] if path.startswith("/v1") else []
        added += [_TLS] if self._tls else []
        headers += [header for header in added if header[0] not in given]


async def _answer(endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        answer = await endpoint(Request(scope, receive))
    except EXPECTED as error:
        answer = problem_of(error).response()
    except Exception as error:
        await problem_of(error).response()(scope, receive, send)
        raise
    await answer(scope, receive, send)


def _policy(path: str) -> bytes:
    return _PAGE if path == "/" else _DOCS if path.startswith("/docs") else _NUMBERS


def _too_large(scope: Scope, headers: Headers) -> Problem | None:
    if len(scope["query_string"]) > MAX_QUERY_BYTES or len(scope["path"]) > MAX_QUERY_BYTES:
        return Problem(414, "too-long", f"an address may have {MAX_QUERY_BYTES} bytes")
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        return Problem(413, "too-large", "requests need no body")
    return None
