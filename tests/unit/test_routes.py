"""Operations behind the gate: which threads they take, and that numbers do not wait for those that wait themselves."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from query.api.access import Gate, HttpReply
from query.api.routes import Routes


class OpenGate:
    """Lets every request in."""

    def serve(self, request: Request, handler: Any, *, admin: bool = False, whole: bool = False) -> Response:
        return Response(handler(request, None).body)


@pytest.mark.parametrize("waiting_query", [b"", b"granularity=total&users=true"])
def test_numbers_are_answered_while_other_operations_wait_for_a_store(waiting_query: bytes) -> None:
    released = threading.Event()

    def wait(_request: Request, _access: Any) -> HttpReply:
        released.wait(20)
        return HttpReply(b"waited")

    routes = Routes(FastAPI().add_api_route, cast(Gate, OpenGate()))
    routes.add("/waits", wait, "", [], "pipeline", waits=not waiting_query)
    routes.add("/numbers", lambda _request, _access: HttpReply(b"numbers"), "", [], "metrics")

    def request(path: str, query: bytes = b"") -> Any:
        scope = {"type": "http", "method": "GET", "path": path, "query_string": query, "headers": []}
        return routes.direct[path](Request(scope))

    async def main() -> tuple[bytes, list[bytes]]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        waiting = [asyncio.ensure_future(request("/waits", waiting_query)) for _ in range(20)]
        await asyncio.sleep(0.05)
        try:
            numbers = await asyncio.wait_for(request("/numbers"), 5)
        finally:
            released.set()
        return bytes(numbers.body), [bytes((await each).body) for each in waiting]

    assert asyncio.run(main()) == (b"numbers", [b"waited"] * 20)
