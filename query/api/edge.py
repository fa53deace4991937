"""The outermost layer of a query process: size limits, secrets in addresses, methods, origins, request ids, security headers, counts,
the access log.

Plain ASGI around FastAPI. Endpoints that need only the request are called from here: FastAPI, which documents them and serves all
other routes, takes longer to find and call one than most answers take.
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
from query.api import pages, secrets_in_urls, tracing
from query.api.origins import Origins
from query.api.problems import EXPECTED, Problem, problem_of
from query.api.tracing import Tracing

MAX_QUERY_BYTES, MAX_BODY_BYTES = 32 << 10, 64 << 10
_READS = ("GET", "HEAD", "OPTIONS")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNLOGGED = ("/healthz", "/readyz", "/metrics")
_SECURITY = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}
_DOCS = b"default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
_NUMBERS = b"default-src 'none'; frame-ancestors 'none'"
_TLS = (b"strict-transport-security", b"max-age=31536000")
_UNKEPT = (b"cache-control", b"no-store")
CountResponse = Callable[[str, int, float], None]
CountKey = Callable[[str, int], None]
Endpoint = Callable[[Request], Awaitable[Response]]


class Broken(Exception):
    """A response ended early, in a way that its client notices: close the connection, and do nothing else."""


class Edge:
    """Wraps the application."""

    def __init__(
        self, app: Starlette, direct: Mapping[str, Endpoint], *, answered: CountResponse, traced: Tracing, log: bool, tls: bool,
        origins: Sequence[str] = (), own_key: str = "", key_used: CountKey = lambda _key, _status: None,
    ) -> None:  # fmt: skip
        """`direct`: by path, what answers a GET without `app`. `answered(route, status, seconds)` counts; `log`: a line for
        each request; `tls`: browsers must insist on it; `origins`: whose pages may read answers; `own_key`: the installation's; `key_used(key, status)`
        counts answers to known keys."""
        self._app, self._direct, self._answered, self._tracing, self._tls = app, direct, answered, traced, tls
        self._key_used = key_used
        self._own_key, self._log = own_key, logs.get("http") if log else None
        self._serve: ASGIApp = Origins(self._by_method, origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, size = time.perf_counter(), 500, 0
        headers = Headers(scope=scope)
        client_id = headers.get("x-request-id", "")
        request_id = client_id if _ID.fullmatch(client_id) else uuid.uuid4().hex
        path, query = scope["path"], scope["query_string"]
        secret = secrets_in_urls.find_secret(path, query, self._own_key)
        # In it, the access log finds the key of the request.
        scope.setdefault("state", {})

        async def finish(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                self._add_headers(path, status, message["headers"])
            else:
                size += len(message.get("body", b""))
            await send(message)

        shown_path = secrets_in_urls.HIDDEN if secret else path
        with self._tracing.request(scope["method"], shown_path, headers) as span:
            try:
                problem = secret or _check_size(scope, headers)
                if problem is not None:
                    await problem.response()(scope, receive, finish)
                else:
                    await self._serve(scope, receive, finish)
            except Broken:
                pass
            finally:
                seconds = time.perf_counter() - started
                route = path if path in self._direct else getattr(scope.get("route"), "path", "none")
                self._answered(route, status, seconds)
                if (key := scope["state"].get("key")) and path not in _UNLOGGED:
                    self._key_used(key, status)
                tracing.finish(span, scope["method"], route, status)
                if self._log is not None and path not in _UNLOGGED:
                    trace_id, client = tracing.trace_id(span), scope.get("client")
                    self._log.info(
                        "request", method=scope["method"], path=shown_path,
                        query=secrets_in_urls.HIDDEN if secret else query[:512].decode("latin-1"),
                        status=status, ms=round(seconds * 1000, 2), bytes=size, request_id=request_id,
                        key=scope["state"].get("key"), client=client[0] if client else None,
                        **({"token": scope["state"]["token"]} if scope["state"].get("token") else {}),
                        **({"trace_id": trace_id} if trace_id else {}),
                    )  # fmt: skip

    async def _by_method(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET; HEAD as GET without its body; OPTIONS of every known path; other methods where the path has them."""
        method, path = scope["method"], scope["path"]
        if method == "GET" and path in self._direct:
            await self._get(scope, receive, send)
            return
        methods = self._methods(scope, path)
        allowed = ", ".join(methods)
        if not methods:
            near = path.rstrip("/")
            hint = f"did you mean {near}?" if self._methods(scope, near) else "/docs lists the paths"
            await Problem(404, "not-found", f"no such path: {path[:200]}; {hint}").response()(scope, receive, send)
        elif method not in methods:
            problem = Problem(
                405, "method-not-allowed", f"{method} is not allowed; use {allowed}", headers={"Allow": allowed}
            )
            await problem.response()(scope, receive, send)
        elif method == "GET":
            await self._get(scope, receive, send)
        elif method == "HEAD":
            await _without_body(self._get, scope, receive, send)
        elif method == "OPTIONS":
            await Response(status_code=204, headers={"Allow": allowed})(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _get(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._direct.get(scope["path"])
        if endpoint is not None:
            await _answer(endpoint, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _methods(self, scope: Scope, path: str) -> tuple[str, ...]:
        """The methods of a path; none where there is no such path. `*` stands for the whole server."""
        if path == "*":
            return _READS
        get = {**scope, "method": "GET", "path": path}
        matching = [(route, match) for route in self._app.routes if (match := route.matches(get)[0]) is not Match.NONE]
        reads = _READS if path in self._direct or any(match is Match.FULL for _, match in matching) else _READS[-1:]
        others = {method for route, _ in matching for method in getattr(route, "methods", None) or ()}
        return (*reads, *sorted(others - set(_READS))) if matching or path in self._direct else ()

    def _add_headers(self, path: str, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Add the headers that a response has not set itself."""
        present = {name for name, _ in headers}
        added = [*_SECURITY.items(), (b"content-security-policy", _policy(path))]
        added += [_UNKEPT] if path.startswith("/v1") else []
        added += [_TLS] if self._tls else []
        headers += [header for header in added if header[0] not in present]


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
    """Answer a HEAD with the headers of a GET. A body of unknown length is not produced."""
    streams = asyncio.Event()

    async def send_head(message: Message) -> None:
        if message["type"] != "http.response.start":
            return
        await send(message)
        await send({"type": "http.response.body", "body": b""})
        if not any(name == b"content-length" for name, _ in message["headers"]):
            streams.set()

    # Both scopes share the state: the access log reads the key and the route of the request from it.
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
                answering.exception()  # its body is not sent
        scope.setdefault("route", as_get.get("route"))


def _policy(path: str) -> bytes:
    return pages.POLICY if path == "/" else _DOCS if path.startswith("/docs") else _NUMBERS


def _check_size(scope: Scope, headers: Headers) -> Problem | None:
    if len(scope["query_string"]) > MAX_QUERY_BYTES or len(scope["path"]) > MAX_QUERY_BYTES:
        return Problem(414, "too-long", f"the address has more than {MAX_QUERY_BYTES} bytes; shorten it")
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        return Problem(413, "too-large", f"the request has a body of more than {MAX_BODY_BYTES} bytes")
    return None
