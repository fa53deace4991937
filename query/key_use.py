"""How often each key is used, and when last. Counted in the process, and written to ClickHouse about once a minute.

For people, not for billing: other routers' last minute is not in it yet, and that of a router that was killed never comes.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from infra import logs
from infra.clickhouse.client import ClickHouse
from infra.clock import now_ms
from infra.errors import AdclickError

FLUSH_S = 60.0
_TABLE = "key_use"


@dataclass(frozen=True)
class Use:
    """Requests that were let in, and when the last one was (epoch ms; 0 for never)."""

    requests: int = 0
    last_used_ms: int = 0

    def __add__(self, other: Use) -> Use:
        return Use(self.requests + other.requests, max(self.last_used_ms, other.last_used_ms))


class KeyUse:
    """The counts of one process since its start. Thread-safe."""

    def __init__(self, client: ClickHouse, now: Callable[[], int] = now_ms, flush_s: float = FLUSH_S) -> None:
        self._client, self._now, self._flush_s = client, now, flush_s
        self._process = secrets.token_hex(8)
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._uses: dict[str, Use] = {}
        self._unwritten: set[str] = set()
        self._flusher: threading.Thread | None = None

    def count(self, key: str) -> None:
        """Count a request. Does not block."""
        with self._lock:
            self._uses[key] = self._uses.get(key, Use()) + Use(1, self._now())
            self._unwritten.add(key)

    def read(self) -> dict[str, Use]:
        """What this process has counted, and what others have written. Raises Unavailable."""
        rows = self._client.rows(
            f"SELECT key, sum(requests), max(last_used_ms) FROM {self._client.database}.{_TABLE} FINAL"
            " WHERE process != {process:String} GROUP BY key",
            {"process": self._process},
        )
        with self._lock:
            uses = dict(self._uses)
        for key, requests, last_used_ms in rows:
            uses[key] = uses.get(key, Use()) + Use(int(requests), int(last_used_ms))
        return uses

    def flush(self) -> None:
        """Write the counts that have changed, which takes the place of those before: to repeat it counts nothing twice."""
        with self._lock:
            keys, self._unwritten = sorted(self._unwritten), set()
            uses = [self._uses[key] for key in keys]
        if not keys:
            return
        columns = {
            "key": pa.array(keys, pa.string()),
            "process": pa.array([self._process] * len(keys), pa.string()),
            "requests": pa.array([use.requests for use in uses], pa.uint64()),
            "last_used_ms": pa.array([use.last_used_ms for use in uses], pa.uint64()),
        }
        try:
            self._client.insert(_TABLE, pa.table(columns))
        except AdclickError as error:
            logs.get("keys").warning("uses of keys are not stored yet", reason=str(error))
            with self._lock:
                self._unwritten |= set(keys)

    def start(self) -> None:
        """Begin to flush now and then, in a thread."""
        self._flusher = threading.Thread(target=self._flush_until_stopped, name="key-use", daemon=True)
        self._flusher.start()

    def stop(self) -> None:
        """Flush for the last time."""
        self._stopping.set()
        if self._flusher is not None:
            self._flusher.join()
        self.flush()

    def _flush_until_stopped(self) -> None:
        while not self._stopping.wait(self._flush_s):
            self.flush()
