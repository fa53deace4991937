"""Streams of server-sent events through sse-starlette: live rows of a question, and whatever else is followed.

The id of an event of rows is the id of the answer that its client then has, so a client that reconnects with it, and with the same parameters,
gets what has changed since, or all rows, and misses nothing. A client that does not read is disconnected; when the server stops, clients are told to reconnect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request

from infra.errors import AdclickError
from query.api.problems import Problem
from query.api.slots import Slot, Slots
from query.bad_question import BadQuestion
from query.keys import Access
from query.question import Question
from query.reply_cache import ReplyCache
from query.router import Answer

STREAMS_A_KEY = 128
"""In one process."""
_EVERY_S, _HEARTBEAT_S = 1.0, 15
_SEND_S = 10.0
# Less than uvicorn's own grace period.
_GRACE_S = 1.0

# Streams of the same question share what was read within this time: many dashboards cost as much as one.
_SHARED_S = 0.5


@dataclass(frozen=True)
class LiveRows:
    """The rows of an answer. `rows`: (bucket, group values…) → the row as JSON."""

    answer_id: str
    rows: dict[tuple[Any, ...], str]

    @property
    def bytes(self) -> int:
        """Memory, roughly."""
        return sum(map(len, self.rows.values()))


ReadRows = Callable[[], LiveRows]


@dataclass(frozen=True)
class LiveEvent:
    """What a stream sends. `id`: with which its client may go on behind it."""

    data: str
    id: str


NextEvent = Callable[[], LiveEvent | None]


class Live:
    """The streams of one process."""

    def __init__(self) -> None:
        self._slots = Slots(
            STREAMS_A_KEY,
            "too-many-streams",
            f"this key has {STREAMS_A_KEY} streams open, which is the limit; close one",
        )
        self._shared: ReplyCache[LiveRows] = ReplyCache(lambda rows: rows.bytes, _SHARED_S)

    def take(self, access: Access) -> Slot:
        """A slot for a stream. Raises Problem (429)."""
        return self._slots.take(access.key)

    def read(self, question: Question, answer: Callable[[], Answer]) -> LiveRows:
        """The rows of a question, as `answer` gives them, or as another stream has just read them."""
        return self._shared.get(question, lambda: _live_rows(answer()))

    def respond(
        self, request: Request, slot: Slot, read_rows: ReadRows, headers: dict[str, str]
    ) -> EventSourceResponse:
        """The stream of events; it releases the slot when it ends. `read_rows` raises Problem once the key is no longer valid."""
        return self.follow(slot, _RowChanges(read_rows, request.headers.get("last-event-id", "")).next_event, headers)

    def follow(self, slot: Slot, next_event: NextEvent, headers: dict[str, str]) -> EventSourceResponse:
        """The stream of what `next_event` returns, each second; None: nothing new. It releases the slot when it ends. `next_event` may
        block, and raises Problem once the key is no longer valid."""
        stopping = anyio.Event()
        return EventSourceResponse(
            self._events(slot, next_event, stopping), headers=headers, ping=_HEARTBEAT_S, send_timeout=_SEND_S, sep="\n",
            shutdown_event=stopping, shutdown_grace_period=_GRACE_S,
        )  # fmt: skip

    async def _events(self, slot: Slot, next_event: NextEvent, stopping: anyio.Event) -> AsyncIterator[ServerSentEvent]:
        with slot:
            while not stopping.is_set():
                try:
                    event = await asyncio.to_thread(next_event)
                except (Problem, AdclickError, BadQuestion) as error:
                    yield ServerSentEvent(str(error), event="problem")
                    if not isinstance(error, AdclickError):
                        return
                else:
                    if event is not None:
                        yield ServerSentEvent(event.data, id=event.id)
                with anyio.move_on_after(_EVERY_S):
                    await stopping.wait()
            yield ServerSentEvent("the server stops; reconnect", event="reconnect", retry=1000)


class _RowChanges:
    """What has changed in the rows of an answer since the ones that a client has."""

    def __init__(self, read_rows: ReadRows, seen: str) -> None:
        """`seen`: the id of the answer whose rows the client has; empty for none."""
        self._read_rows, self._seen = read_rows, seen
        self._shown: dict[tuple[Any, ...], str] = {}

    def next_event(self) -> LiveEvent | None:
        """The rows that are new or differ."""
        read, shown, seen = self._read_rows(), self._shown, self._seen
        self._shown, self._seen = read.rows, read.answer_id
        changed = [row for key, row in read.rows.items() if shown.get(key) != row]
        if not seen or (changed and (shown or read.answer_id != seen)):
            return LiveEvent(f"[{','.join(changed)}]", read.answer_id)
        return None


def _live_rows(answer: Answer) -> LiveRows:
    keys = answer.page.frame.select("_bucket", *answer.question.group_by).rows()
    lines = answer.page.shown.write_ndjson().splitlines()
    return LiveRows(answer.id, dict(zip(keys, lines, strict=True)))
