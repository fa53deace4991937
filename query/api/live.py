"""Live rows of a question, as server-sent events through sse-starlette.

An event's id tells which rows its reader has, so that one that reconnects with it gets what has changed since, or all of it,
and misses nothing. A reader that does not read is dropped; one whose server stops is told to come back.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager
from typing import Any

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request

from infra.errors import AdclickError
from query.api.problems import Problem
from query.keys import Access
from query.router import Answer

STREAMS_A_KEY = 32
"""In one process."""
_EVERY_S, _HEARTBEAT_S = 1.0, 15
_SEND_S = 10.0
# Less than what uvicorn waits for.
_FAREWELL_S = 1.0

Ask = Callable[[], Answer]


class Live:
    """The streams of one process."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def respond(self, request: Request, access: Access, ask: Ask, headers: dict[str, str]) -> EventSourceResponse:
        """The stream; `ask` raises Problem once the key may no longer ask. Raises Problem (429)."""
        if self._open[access.key] >= STREAMS_A_KEY:
            raise Problem(
                429, "too-many-streams", f"at most {STREAMS_A_KEY} streams at once with a key: close one",
                headers={"Retry-After": "5"},
            )  # fmt: skip
        stopping = anyio.Event()
        seen = request.headers.get("last-event-id", "")
        return EventSourceResponse(
            self._events(access.key, ask, seen, stopping), headers=headers, ping=_HEARTBEAT_S, send_timeout=_SEND_S, sep="\n",
            shutdown_event=stopping, shutdown_grace_period=_FAREWELL_S,
        )  # fmt: skip

    async def _events(self, key: str, ask: Ask, seen: str, stopping: anyio.Event) -> AsyncIterator[ServerSentEvent]:
        shown: dict[tuple[Any, ...], str] = {}
        with self._counted(key):
            while not stopping.is_set():
                try:
                    rows = _rows(await asyncio.to_thread(ask))
                except (Problem, AdclickError) as error:
                    detail = error.detail if isinstance(error, Problem) else str(error)
                    yield ServerSentEvent(detail, event="problem")
                    if isinstance(error, Problem):
                        return
                else:
                    name = _digest(rows)
                    fresh = [row for where, row in rows.items() if shown.get(where) != row]
                    if name != seen and (fresh or not seen):
                        yield ServerSentEvent(f"[{','.join(fresh)}]", id=name)
                    shown, seen = rows, name
                with anyio.move_on_after(_EVERY_S):
                    await stopping.wait()
            yield ServerSentEvent("the server stops: connect again", event="reconnect", retry=1000)

    @contextmanager
    def _counted(self, key: str) -> Any:
        with self._lock:
            self._open[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[key] -= 1


def _rows(found: Answer) -> dict[tuple[Any, ...], str]:
    """(bucket, group values…) → the row as JSON."""
    keys = found.page.frame.select("_bucket", *found.question.group_by).rows()
    lines = found.page.shown.write_ndjson().splitlines()
    return dict(zip(keys, lines, strict=True))


def _digest(rows: dict[tuple[Any, ...], str]) -> str:
    return hashlib.sha256("\n".join(rows.values()).encode()).hexdigest()[:24]
