"""Answers of more rows than a page, sent while they are read.

An export that cannot be completed says so: its last line is an error, and its connection ends without the end of the body, which
every HTTP/1.1 client takes for a failure. Reading stops when the client is gone, and when its key is no longer valid.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

import cramjam
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from infra import logs
from infra.errors import AdclickError
from query import export
from query.api.access import Gate
from query.api.edge import Broken
from query.api.problems import Problem
from query.export import Ask, Export
from query.formats import Format
from query.keys import Access
from query.router import Answer

EXPORTS_A_KEY = 4
"""At once, in one process: each keeps a stretch of rows in memory."""
# Apart from the threads that answer: an export must not hold up short answers.
_THREADS = 2
# How long a client may take to read a page, and how often a wait for the rate limit looks whether it is still there.
_SEND_S, _POLL_S = 60.0, 1.0
_GZIP_LEVEL, _ZSTD_LEVEL = 1, 1
T = TypeVar("T")


class Compressor(Protocol):
    """One stream of a content coding. `flush` returns what was compressed so far, `finish` the rest with the end mark."""

    def compress(self, data: bytes, /) -> Any: ...
    def flush(self) -> Any: ...
    def finish(self) -> Any: ...


class _Gzip:
    def __init__(self) -> None:
        self._stream = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        self._pending = b""

    def compress(self, data: bytes, /) -> None:
        self._pending += self._stream.compress(data)

    def flush(self) -> bytes:
        pending, self._pending = self._pending + self._stream.flush(zlib.Z_SYNC_FLUSH), b""
        return pending

    def finish(self) -> bytes:
        return self._pending + self._stream.flush(zlib.Z_FINISH)


class Exports:
    """The exports of one process."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_THREADS, "exports")

    def respond(
        self, request: Request, access: Access, begun: Export, form: Format, coding: str, ask: Ask, headers: dict[str, str]
    ) -> Response:  # fmt: skip
        """The response: all rows of an export that was begun; a problem (429) when the key has too many open."""
        compressor = _compressor(coding)
        pieces = self._pieces(request, access, begun, form, ask)
        body = pieces if compressor is None else _compressed(pieces, compressor)
        return _Response(body, headers=headers, media_type=form.media_type, slot=self._slot(access.key))

    @contextmanager
    def _slot(self, key: str) -> Iterator[None]:
        """One of EXPORTS_A_KEY. Raises Problem (429) when all are taken."""
        with self._lock:
            if self._open[key] >= EXPORTS_A_KEY:
                raise Problem(
                    429, "too-many-exports", f"at most {EXPORTS_A_KEY} exports at once with a key: wait for one to end",
                    headers={"Retry-After": "5"},
                )  # fmt: skip
            self._open[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[key] -= 1

    async def _pieces(
        self, request: Request, access: Access, begun: Export, form: Format, ask: Ask
    ) -> AsyncIterator[bytes]:
        encoder = form.encoder()

        def encode(page: Answer) -> bytes:
            self._gate.known(request)
            return encoder.page(page)

        try:
            for page in export.pages(begun.first):
                yield await self._run(encode, page)
            for question in begun.rest:
                while wait_s := await self._run(self._gate.wait_s, request):
                    await asyncio.sleep(min(wait_s, _POLL_S))
                stretch = await self._run(ask, question)
                self._gate.charge(access, stretch.rows_read)
                if missing := begun.misses(stretch):
                    raise Problem(503, "unavailable", missing)
                for page in export.pages(stretch):
                    yield await self._run(encode, page)
            yield encoder.end()
        except (Problem, AdclickError, OverflowError) as error:
            detail = error.detail if isinstance(error, Problem) else str(error)
            logs.get("http").warning("export broken off", key=access.key, reason=detail)
            yield form.mark_broken(f"this export is not complete: {detail}")
            raise Broken from error

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        call = partial(contextvars.copy_context().run, work, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)


class _Response(StreamingResponse):
    """Takes a slot while it lasts, and gives up on a client that does not read."""

    def __init__(self, *arguments: Any, slot: AbstractContextManager[None], **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._slot = slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Any) -> None:
            async with asyncio.timeout(_SEND_S):
                await send(message)

        with ExitStack() as stack:
            try:
                stack.enter_context(self._slot)
            except Problem as problem:
                await problem.response()(scope, receive, send)
                return
            try:
                await super().__call__(scope, receive, send_in_time)
            except TimeoutError as error:
                raise Broken from error


def _compressor(coding: str) -> Compressor | None:
    if coding == "zstd":
        compressor: Compressor = cramjam.zstd.Compressor(level=_ZSTD_LEVEL)
        return compressor
    return _Gzip() if coding == "gzip" else None


async def _compressed(pieces: AsyncIterator[bytes], compressor: Compressor) -> AsyncIterator[bytes]:
    """Compressed piece by piece; without its end mark when the pieces break off."""
    async for piece in pieces:
        compressor.compress(piece)
        yield bytes(compressor.flush())
    yield bytes(compressor.finish())
