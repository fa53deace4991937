"""Lookups of hosts' names, in threads: a name server that does not answer holds a thread for as long as the system's resolver waits,
so each advertiser may have only a few lookups at once, and the threads suffice for many such advertisers."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor

from query.webhooks.targets import Address

_THREADS, _OF_ADVERTISER = 64, 4
_WAIT_S = 5.0

LookUp = Callable[[str, int], list[Address]]


class ResolverBusy(Exception):
    """A lookup could not begin in time: others hold the threads. It says nothing about the host."""


class Resolver:
    """Used in one event loop."""

    def __init__(
        self, look_up: LookUp | None = None, *, threads: int = _THREADS, of_advertiser: int = _OF_ADVERTISER,
        wait_s: float = _WAIT_S,
    ) -> None:  # fmt: skip
        """`look_up`: the addresses of a host and port; by default the system's. `wait_s`: for a thread."""
        self._look_up, self._of_advertiser, self._wait_s = look_up or _look_up, of_advertiser, wait_s
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="names")
        self._free = asyncio.Semaphore(threads)
        self._free_of: dict[int, asyncio.Semaphore] = {}

    async def begin(self, host: str, port: int, advertiser: int) -> Awaitable[list[Address]]:
        """Begin a lookup and return its result to be awaited, which raises OSError. Raises ResolverBusy."""
        own = self._free_of.setdefault(advertiser, asyncio.Semaphore(self._of_advertiser))
        try:
            async with asyncio.timeout(self._wait_s):
                # Its own limit first: what waits for that must not stand in the queue of all.
                await own.acquire()
                try:
                    await self._free.acquire()
                except BaseException:
                    own.release()
                    raise
        except TimeoutError:
            raise ResolverBusy(f"no thread to look up {host} within {self._wait_s:.0f} s") from None
        loop, lookup = asyncio.get_running_loop(), self._pool.submit(self._look_up, host, port)

        def release() -> None:
            own.release()
            self._free.release()

        def end(_: Future[list[Address]]) -> None:
            # When the thread is free, which may be long after the caller has given up; the loop may be closed by then.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(release)

        lookup.add_done_callback(end)
        return asyncio.wrap_future(lookup)

    def close(self) -> None:
        """End the threads, without waiting for them."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int) -> list[Address]:
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries))
