"""Exports over HTTP: answers of more rows than a page, sent while they are read.

An export that cannot be completed ends with a line that is an error, and its connection is closed without the end of the body,
which every HTTP/1.1 client takes for a failure. Reading stops when the client disconnects, and when its key is no longer valid.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import cramjam
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from infra import logs
from infra.errors import AdclickError
from query.api.access import Gate
from query.api.edge import Broken
from query.api.negotiation import IDENTITY
from query.api.problems import Problem
from query.api.slots import Slot, Slots
from query.export_stretches import AnswerQuestion, Export
from query.formats import Format
from query.keys import Access
from query.router import Answer

EXPORTS_A_KEY = 4
"""At once, in one process: each keeps a stretch of rows in memory."""
# Threads of their own: an export must not delay short answers.
_THREADS = 2
# How long a client may take to read a page; how often its key and its limit are checked while an export waits for the rate limit.
_SEND_S, _POLL_S = 60.0, 1.0
_LEVEL = 1
T = TypeVar("T")


class Exports:
    """The exports of one process."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._slots = Slots(
            EXPORTS_A_KEY,
            "too-many-exports",
            f"this key has {EXPORTS_A_KEY} exports open, which is the limit; retry when one has ended",
        )
        self._pool = ThreadPoolExecutor(_THREADS, "exports")

    def take(self, access: Access) -> Slot:
        """A slot for an export, to be taken before any of it is read. Raises Problem (429)."""
        return self._slots.take(access.key)

    def respond(
        self, request: Request, access: Access, started: Export, form: Format, coding: str, answer: AnswerQuestion, slot: Slot,
        headers: dict[str, str],
    ) -> Response:  # fmt: skip
        """The response with all rows of an export whose first stretch is read. It releases the slot when it ends."""
        compressor = _compressor(coding)
        chunks = self._encode_pages(request, access, started, form, answer)
        body = chunks if compressor is None else _compress_chunks(chunks, compressor)
        return _Response(body, headers=headers, media_type=form.media_type, slot=slot)

    async def _encode_pages(
        self, request: Request, access: Access, started: Export, form: Format, answer: AnswerQuestion
    ) -> AsyncIterator[bytes]:
        encoder = form.encoder()

        def encode(page: Answer) -> bytes:
            self._gate.authenticate(request)
            return encoder.page(page)

        try:
            for page in started.split_pages(started.first):
                yield await self._run(encode, page)
            for question in started.rest:
                while wait_s := await self._run(self._gate.wait_s, request):
                    await asyncio.sleep(min(wait_s, _POLL_S))
                stretch = await self._run(answer, question)
                self._gate.charge(access, stretch.rows_read)
                if warning := started.unannounced(stretch):
                    raise Problem(503, "unavailable", warning)
                for page in started.split_pages(stretch):
                    yield await self._run(encode, page)
            yield encoder.end()
        except (Problem, AdclickError, OverflowError) as error:
            detail = error.detail if isinstance(error, Problem) else str(error)
            logs.get("http").warning("export aborted", key=access.key, reason=detail)
            yield form.mark_broken(f"this export is not complete: {detail}")
            raise Broken from error

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        call = partial(contextvars.copy_context().run, work, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)


class _Response(StreamingResponse):
    """Holds a slot until it has been sent; closes the connection of a client that does not read."""

    def __init__(self, *arguments: Any, slot: Slot, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._slot = slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Any) -> None:
            async with asyncio.timeout(_SEND_S):
                await send(message)

        with self._slot:
            try:
                await super().__call__(scope, receive, send_in_time)
            except TimeoutError as error:
                raise Broken from error


def _compressor(coding: str) -> Any:
    """A cramjam compressor for one stream; None for identity."""
    return None if coding == IDENTITY else getattr(cramjam, coding).Compressor(level=_LEVEL)


async def _compress_chunks(chunks: AsyncIterator[bytes], compressor: Any) -> AsyncIterator[bytes]:
    """Compress chunk by chunk; without the end mark where the chunks end in an error."""
    async for chunk in chunks:
        compressor.compress(chunk)
        yield bytes(compressor.flush())
    yield bytes(compressor.finish())
