"""Registers the operations under /v1: each a handler behind the gate, run in a thread, and described in the OpenAPI document."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from query.api import document
from query.api.access import Gate, Handler
from query.api.bodies import read_body
from query.api.edge import Endpoint

# Questions about minutes have threads of their own, so that they do not wait behind questions that wait for ClickHouse.
_MINUTE_THREADS = 2
_ABOUT_MINUTES = b"granularity=minute"
# So have questions about users, whose statements read much more than those that count, and which wait for these.
_USER_THREADS = 4
_ABOUT_USERS = b"users=true"
# So have operations that wait for Kafka or for a lease: they take seconds, and while a store is away all of their time.
_WAITING_THREADS = 4


class Routes:
    """The operations of one query process. `direct`: those that the edge may call itself, by path: a GET of a fixed path."""

    def __init__(self, add_api_route: Callable[..., None], gate: Gate) -> None:
        """`add_api_route`: of the web application."""
        self._add_api_route, self._gate = add_api_route, gate
        self._minutes = ThreadPoolExecutor(_MINUTE_THREADS, "minutes")
        self._users = ThreadPoolExecutor(_USER_THREADS, "users")
        self._waiting = ThreadPoolExecutor(_WAITING_THREADS, "waiting")
        self.direct: dict[str, Endpoint] = {}

    def add(
        self, path: str, handler: Handler, summary: str, parameters: list[dict[str, Any]], answers: str, *, method: str = "GET",
        admin: bool = False, whole: bool = False, waits: bool = False, body: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Add an operation. `answers`: its responses, by name in `document.RESPONSES`. `admin`: for keys with that scope alone. `whole`:
        of these, for those that see all advertisers and campaigns. `waits`: it may take seconds, in threads apart from those of
        numbers. `body`: the description of the request's body, which the handler finds in its state."""

        async def endpoint(request: Request) -> Response:
            if body is not None:
                request.state.body = await read_body(request)
            serve = partial(
                contextvars.copy_context().run, partial(self._gate.serve, admin=admin, whole=whole), request, handler
            )
            threads = self._waiting if waits else self._threads_for(request.scope["query_string"])
            return await asyncio.get_running_loop().run_in_executor(threads, serve)

        if method == "GET" and "{" not in path:
            self.direct[path] = endpoint
        described = {"parameters": parameters} | ({} if body is None else {"requestBody": body})
        self._add_api_route(
            path, endpoint, methods=[method], summary=summary, response_model=None, response_class=Response,
            name=f"{method}{answers}{path}", responses=document.RESPONSES[answers],
            openapi_extra=described,
        )  # fmt: skip

    def _threads_for(self, query: bytes) -> ThreadPoolExecutor | None:
        """Those of a question; None for the ones that answer most."""
        if _ABOUT_USERS in query:
            return self._users
        return self._minutes if _ABOUT_MINUTES in query else None
