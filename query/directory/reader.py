"""The directory as a process knows it: read whole once, then brought up to date by version, and kept while ClickHouse is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from infra.errors import AdclickError
from query.directory.snapshot import Snapshot
from query.directory.store import DirectoryStore

FRESH_S = 1.5
"""A snapshot of this age is used, and brought up to date in the background."""
EXPIRED_S = 3.0
"""A snapshot of this age is brought up to date before it is used: names are that old at most, and the time of a request."""
# For how long a request waits for that, before it uses the one that there is; and once ClickHouse has not answered.
_WAIT_S, _WAIT_AGAIN_S = 1.0, 0.05
# How often a snapshot is compared with the table as a whole: a row that was written out of turn, or a table that was made again.
_COMPARE_S = 30.0


@dataclass(frozen=True)
class DirectoryLookup:
    """A snapshot. `stale_s`: how old it is, where it could not be brought up to date; 0 otherwise."""

    snapshot: Snapshot
    stale_s: float = 0.0


class DirectoryReader:
    """Thread-safe. Costs nothing until it is used, and nothing while it is not."""

    def __init__(self, store: DirectoryStore, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store, self._monotonic = store, monotonic
        self._snapshot: Snapshot | None = None
        self._as_of = self._compared_at = 0.0
        self._answers, self._outdated = True, False
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="directory")
        # The read that has not begun: what it will read is new enough for all who wait for it.
        self._queued: Future[Snapshot] | None = None
        self._queueing = threading.Lock()

    def begin(self, max_age_s: float = EXPIRED_S) -> Callable[[], DirectoryLookup]:
        """Return what waits for a snapshot that is at most so old, or else for the one that there is. It raises Unavailable where
        there is none."""
        snapshot, age_s = self._snapshot, self._monotonic() - self._as_of
        if snapshot is not None and age_s < max_age_s and not self._outdated:
            if age_s >= FRESH_S:
                self._queue()  # where it fails, the next one that finds the snapshot expired reports it
            return lambda: DirectoryLookup(snapshot)
        reading = self._queue()
        return lambda: self._wait(reading)

    def expire(self) -> None:
        """Have the snapshot brought up to date before it is used again: this process has written."""
        self._outdated = True

    def current(self, max_age_s: float = 0.0) -> DirectoryLookup:
        """The snapshot as of now, or the last one while ClickHouse is away. Raises Unavailable where there is none."""
        return self.begin(max_age_s)()

    def newest(self) -> Snapshot:
        """The snapshot as of now. Raises Unavailable."""
        return self._queue().result()

    def _queue(self) -> Future[Snapshot]:
        """A read that begins from now on."""
        with self._queueing:
            if self._queued is None:
                self._queued = self._reader.submit(self._read)
            return self._queued

    def _wait(self, reading: Future[Snapshot]) -> DirectoryLookup:
        known = self._snapshot
        try:
            wait_s = _WAIT_S if self._answers else _WAIT_AGAIN_S
            return DirectoryLookup(reading.result(None if known is None else wait_s))
        except (TimeoutError, AdclickError):
            self._answers = False
            if known is None:
                raise
            return DirectoryLookup(self._snapshot or known, max(0.001, self._monotonic() - self._as_of))

    def _read(self) -> Snapshot:
        """Bring the snapshot up to date. In the reader's thread."""
        with self._queueing:
            self._queued = None
        began, was_outdated, self._outdated = self._monotonic(), self._outdated, False
        known = self._snapshot or Snapshot.empty()
        try:
            snapshot = known.with_rows(self._store.read_since(known.version))
            if began - self._compared_at >= _COMPARE_S:
                snapshot = self._compare(snapshot)
                self._compared_at = began
        except AdclickError:
            # What this process has written is still not in it.
            self._outdated = self._outdated or was_outdated
            raise
        self._snapshot, self._as_of, self._answers = snapshot, began, True
        return snapshot

    def _compare(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot, or the whole table read again where they differ."""
        newest, summary = self._store.summary()
        if newest > snapshot.version or (newest, summary) == (snapshot.version, snapshot.summary):
            return snapshot  # what is newer is read next time
        return Snapshot.empty().with_rows(self._store.read_since(0))
