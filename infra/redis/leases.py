"""Leases: locks in Redis that expire by themselves, with a number that is higher for each later holder."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from infra.errors import BadStatement, Unavailable, UserError

if TYPE_CHECKING:
    from infra.redis.client import Redis

_POLL_S = 0.02
_RENEW = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2])"
_RELEASE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1])"
# A number that is higher than any before, also after Redis lost its memory or another server took over: its clock, unless that stood
# still.
_HIGHER = """
local time = redis.call('TIME')
local next = math.max(time[1] * 1000 + math.floor(time[2] / 1000), tonumber(redis.call('GET', KEYS[1]) or '0') + 1)
redis.call('SET', KEYS[1], string.format('%.0f', next))
return next
"""


def fence_key(name: str) -> str:
    """The key of the newest holder's number. It may be on another node of a cluster than the lease, and be lost without it."""
    return f"{name}:fence"


@contextlib.contextmanager
def hold_lease(redis: Redis, name: str, seconds: int, busy: str) -> Iterator[int]:
    """Hold a lease and renew it meanwhile; yields its number. Raises UserError(`busy`) when it is taken, and Unavailable.

    A holder that loses it does not learn of it: what it must not do then has to be conditional on the number.
    """
    higher, renew, release = (redis.script(source) for source in (_HIGHER, _RENEW, _RELEASE))
    token, kept_ms, done = random.randbytes(16).hex(), seconds * 1000, threading.Event()
    if not redis.call("SET", name, token, "NX", "PX", kept_ms):
        raise UserError(busy, hint=f"wait for it, or {seconds} s after it died")

    def keep() -> None:
        while not done.wait(seconds / 3):
            with contextlib.suppress(Unavailable, BadStatement):
                renew([name], [token, kept_ms])

    thread = threading.Thread(target=keep, daemon=True)
    try:
        fence = int(higher([fence_key(name)], []))
        thread.start()
        yield fence
    finally:
        done.set()
        if thread.is_alive():
            thread.join()
        with contextlib.suppress(Unavailable, BadStatement):
            release([name], [token])


@contextlib.contextmanager
def wait_for_lease(redis: Redis, name: str, seconds: int, wait_s: float, busy: str) -> Iterator[int]:
    """Hold a lease, as `hold_lease` does, once its holder has released it. Raises Unavailable(`busy`) after `wait_s`."""
    deadline = time.monotonic() + wait_s
    with contextlib.ExitStack() as lock:
        while True:
            try:
                fence = lock.enter_context(redis.lease(name, seconds, busy))
                break
            except UserError as error:
                if time.monotonic() > deadline:
                    raise Unavailable(f"{busy} by another process", hint="retry") from error
                time.sleep(_POLL_S)
        yield fence
