"""The real Redis, with a hook around each script: a test moves other parts on between two calls, or lets a call fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from infra.redis.client import Redis, Script
from infra.redis.commands import Arguments


class HookedRedis(Redis):
    """`around_script` is called in place of each script, with a function that calls the script."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.around_script: Callable[[Callable[[], Any]], Any] = lambda call: call()

    def script(self, source: str) -> Script:
        return _HookedScript(self, source)


class _HookedScript(Script):
    def __init__(self, redis: HookedRedis, source: str) -> None:
        super().__init__(redis, source)
        self._redis = redis

    def each(self, calls: Sequence[tuple[Sequence[str | bytes], Arguments]]) -> list[Any]:
        replies: list[Any] = self._redis.around_script(lambda: super(_HookedScript, self).each(calls))
        return replies
