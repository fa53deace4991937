"""What every request passes first and every answer last: limits of size, methods, origins, request ids, security headers, counts,
the access log.

Plain ASGI, and outside of FastAPI: an endpoint that only needs the request is called from here. FastAPI, which describes it and
serves everything else, takes longer for finding and calling it than most answers do.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra import logs
from query.api import tracing
from query.api.origins import Origins
from query.api.problems import EXPECTED, Problem, problem_of
from query.api.tracing import Tracing

MAX_QUERY_BYTES, MAX_BODY_BYTES = 32 << 10, 64 << 10
ALLOWED = "GET, HEAD, OPTIONS"
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


class Broken(Exception):
    """A response ended before its end, and its client can see that: close the connection, and do nothing else."""


class Edge:
    """Wraps the application."""

    def __init__(
        self, app: Starlette, direct: Mapping[str, Endpoint], *, answered: Answered, traced: Tracing, log: bool, tls: bool,
        origins: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """`direct`: by path, what answers a GET without `app`. `answered(route, status, seconds)` counts; `log`: a line for
        each request; `tls`: browsers must insist on it; `origins`: whose pages may read answers."""
        self._app, self._direct, self._answered, self._tracing, self._tls = app, direct, answered, traced, tls
        self._log = logs.get("http") if log else None
        self._serve: ASGIApp = Origins(self._by_method, origins) if origins else self._by_method

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
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                self._add_headers(path, status, message["headers"])
            else:
                size += len(message.get("body", b""))
            await send(message)

        with self._tracing.request(scope["method"], path, headers) as span:
            try:
                refused = _too_large(scope, headers)
                if refused is not None:
                    await refused.response()(scope, receive, finish)
                else:
                    await self._serve(scope, receive, finish)
            except Broken:
                pass
            finally:
                seconds = time.perf_counter() - started
                route = path if path in self._direct else getattr(scope.get("route"), "path", "none")
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

    async def _by_method(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET as it is, HEAD as GET without its body, OPTIONS for every path that there is; nothing else."""
        method, path = scope["method"], scope["path"]
        if method == "GET" and path in self._direct:
            await self._get(scope, receive, send)
        elif not self._exists(scope, path):
            near = path.rstrip("/")
            hint = f"did you mean {near}?" if self._exists(scope, near) else "/docs lists what there is"
            await Problem(404, "not-found", f"there is no {path[:200]}; {hint}").response()(scope, receive, send)
        elif method == "GET":
            await self._get(scope, receive, send)
        elif method == "HEAD":
            await _without_body(self._get, scope, receive, send)
        elif method == "OPTIONS":
            await Response(status_code=204, headers={"Allow": ALLOWED})(scope, receive, send)
        else:
            problem = Problem(405, "method-not-allowed", f"only {ALLOWED}, not {method}", headers={"Allow": ALLOWED})
            await problem.response()(scope, receive, send)

    async def _get(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._direct.get(scope["path"])
        if endpoint is not None:
            await _answer(endpoint, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _exists(self, scope: Scope, path: str) -> bool:
        """Whether a GET of the path has a route; `*` stands for the whole server."""
        if path in self._direct or path == "*":
            return True
        get = {**scope, "method": "GET", "path": path}
        return any(route.matches(get)[0] is Match.FULL for route in self._app.routes)

    def _add_headers(self, path: str, status: int, headers: list[tuple[bytes, bytes]]) -> None:
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


async def _without_body(get: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a HEAD: with the head of the answer to a GET. A body of unknown length is not produced."""
    streams = asyncio.Event()

    async def send_head(message: Message) -> None:
        if message["type"] != "http.response.start":
            return
        await send(message)
        await send({"type": "http.response.body", "body": b""})
        if not any(name == b"content-length" for name, _ in message["headers"]):
            streams.set()

    # The scope is the same but for the method: what is learned of the request, such as its key and route, goes into both.
    as_get = {**scope, "method": "GET", "state": scope.setdefault("state", {})}
    answering = asyncio.ensure_future(get(as_get, receive, send_head))
    streaming = asyncio.ensure_future(streams.wait())
    try:
        await asyncio.wait({answering, streaming}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            answering.result()
    finally:
        streaming.cancel()
        if not answering.done():
            answering.cancel()
            await asyncio.wait({answering})
            if not answering.cancelled():
                answering.exception()  # of a body that nobody gets
        scope.setdefault("route", as_get.get("route"))


def _policy(path: str) -> bytes:
    return _PAGE if path == "/" else _DOCS if path.startswith("/docs") else _NUMBERS


def _too_large(scope: Scope, headers: Headers) -> Problem | None:
    if len(scope["query_string"]) > MAX_QUERY_BYTES or len(scope["path"]) > MAX_QUERY_BYTES:
        return Problem(414, "too-long", f"an address may have {MAX_QUERY_BYTES} bytes")
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        return Problem(413, "too-large", "requests need no body")
    return None
