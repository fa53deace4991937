"""A TCP proxy on this machine that can be a bad network: cut, silent, slow or narrow."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from tests.ports import unused_port

_CHUNK_BYTES = 1 << 16
_SLICES_PER_S = 20
_CALL_TIMEOUT_S = 10.0
# What a slow network may hold; a sender then waits, as on a full socket.
_HELD_CHUNKS = 64


class Proxy:
    """Passes bytes between its clients and `target`, `HOST:PORT` or a URL. Runs in a thread of its own; its methods are for any thread.

    Each fault applies to connections that are there, too, and ends by `restore`; `delay` and `throttle` may go together.
    """

    def __init__(self, target: str, *, advertises: bool = False) -> None:
        """`advertises`: the target is a Kafka broker, which tells clients its address. They are told the proxy's in its place, or they would
        connect past it."""
        self._target = host, port = _address_of(target)
        self._connections = set[_Connection]()
        self.delay_s, self.bytes_per_s, self.swallows = 0.0, 0.0, False
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        # None that a connection may go out from: a proxy that was cut comes back at it.
        self.port = unused_port()
        self._call(self._listen())
        self.address = f"127.0.0.1:{self.port}"
        self.told = (_in_metadata(host, port), _in_metadata("127.0.0.1", self.port)) if advertises else None
        self.url = target.replace(f"{host}:{port}", self.address)
        """The target's URL, with this proxy in its place."""

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    def cut(self) -> None:
        """Reset all connections, and refuse new ones: the host is there, and nothing listens."""
        self._call(self._cut())

    def drop(self) -> None:
        """Accept connections, and swallow what is sent in either direction: a partition, or a process that is halted."""
        self._call(self._set(swallows=True))

    def delay(self, seconds: float) -> None:
        """Deliver all bytes this much later, in both directions, however many there are."""
        self._call(self._set(delay_s=seconds))

    def throttle(self, bytes_per_s: float) -> None:
        """Deliver no more than this in a second, by connection and direction."""
        self._call(self._set(bytes_per_s=bytes_per_s))

    def lead_to(self, target: str) -> None:
        """Have connections that are made from now on lead elsewhere, as a name does whose address changes at a fail-over."""
        self._target = _address_of(target)

    def restore(self) -> None:
        """Be a good network again. Connections that `drop` took bytes of are reset: their streams have holes."""
        self._call(self._restore())

    def close(self) -> None:
        """Reset all connections and end the thread. May be called twice."""
        if self._loop.is_closed():
            return
        self._call(self._cut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_TIMEOUT_S)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_TIMEOUT_S)

    # -- in the loop --------------------------------------------------------------------------------------------

    async def _set(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=_CHUNK_BYTES)

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._reset(self._connections)

    async def _restore(self) -> None:
        self.delay_s, self.bytes_per_s, self.swallows = 0.0, 0.0, False
        await self._reset({connection for connection in self._connections if connection.has_lost})
        if self._server is None:
            await self._listen()

    async def _reset(self, connections: set[_Connection]) -> None:
        tasks = [connection.task for connection in connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(self, task)
        self._connections.add(connection)
        try:
            await connection.run((reader, writer), self._target)
        except asyncio.CancelledError:
            pass  # by `_reset`, which waits for it
        finally:
            self._connections.discard(connection)


class _Connection:
    """A client's connection and the one to the target, which end together."""

    def __init__(self, proxy: Proxy, task: asyncio.Task[Any]) -> None:
        self._proxy, self.task = proxy, task
        self.has_lost = False
        """Whether bytes were swallowed."""

    async def run(self, client: tuple[asyncio.StreamReader, asyncio.StreamWriter], target: tuple[str, int]) -> None:
        writers, in_order = [client[1]], False
        try:
            if self._proxy.swallows:
                # A network that swallows all brings no connection about either, and the target need not be there.
                self.has_lost = True
                while await client[0].read(_CHUNK_BYTES):
                    pass
                return
            reader, writer = await asyncio.open_connection(*target, limit=_CHUNK_BYTES)
            writers.append(writer)
            await _all_or_none([*self._pass_on(client[0], writer), *self._pass_on(reader, client[1], self._proxy.told)])
            in_order = True
        except OSError:
            pass  # the target is away, or a side has hung up: so does the other one
        finally:
            for writer in writers:
                if not in_order:
                    _reset_on_close(writer)
                writer.close()

    def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, told: tuple[bytes, bytes] | None = None
    ) -> tuple[Coroutine[Any, Any, None], Coroutine[Any, Any, None]]:
        """Both halves of one direction."""
        queue = asyncio.Queue[tuple[float, bytes]](_HELD_CHUNKS)
        return self._receive(reader, queue, told), self._send(queue, writer)

    async def _receive(
        self,
        reader: asyncio.StreamReader,
        queue: asyncio.Queue[tuple[float, bytes]],
        told: tuple[bytes, bytes] | None,
    ) -> None:
        """Until the sender ends its side, which is passed on as an empty chunk."""
        data = b"-"
        while data:
            data = await reader.read(_CHUNK_BYTES)
            if told is not None:
                data = data.replace(*told)
            if data and self._proxy.swallows:
                self.has_lost = True
            else:
                await queue.put((time.monotonic() + self._proxy.delay_s, data))

    async def _send(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if not data:
                writer.write_eof()
                return
            while data:
                rate = self._proxy.bytes_per_s
                size = max(1, int(rate / _SLICES_PER_S)) if rate else len(data)
                writer.write(data[:size])
                await writer.drain()
                data = data[size:]
                if rate:
                    await asyncio.sleep(size / rate)


def _in_metadata(host: str, port: int) -> bytes:
    """An address as Kafka's responses have it: both are as long where both hosts are, so nothing else of a response changes."""
    return host.encode() + struct.pack(">i", port)


def _address_of(target: str) -> tuple[str, int]:
    url = urlsplit(target if "://" in target else f"//{target}")
    return url.hostname or "", url.port or 0


async def _all_or_none(coroutines: list[Coroutine[Any, Any, None]]) -> None:
    """Run them to their ends, or until one raises; end the others then."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    """Let the writer send RST in place of FIN when it closes, as after a cut: bytes that are on their way are lost."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
