"""Writes the users of counted events to ClickHouse, as coupons: a reader of `ad-archive` in a thread of the stream worker.

Offsets are committed after the rows are acknowledged. What is read twice is written twice, which changes no register; so nothing
here needs a transaction, a state log or a fence. The metadata of an offset names the tables that the rows are in, by their UUIDs: where
one was made again since, all that `ad-archive` still has is read again. How far users are counted is published for routers
(`stream.reach.progress`). Whatever happens here, counting goes on.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from infra import faults, logs
from infra.clickhouse import borders
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, now_ms
from infra.columnar.columns import Ints
from infra.errors import OffsetOutOfRange, Refused, SessionLost, Unavailable
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.client import BEGINNING
from infra.kafka.consumers import GroupConsumer
from infra.kafka.records import Committed
from infra.priority import BACKGROUND, give_way_here
from infra.redis.client import Redis
from infra.retries import WAITS, Sessions, pause_s
from infra.settings import Settings
from ingest import blocks
from ingest.archive import schema as archive_schema
from ingest.archive.schema import Decision
from ingest.blocks import BlockHeader
from stream.reach.additions import Additions, ReachRows
from stream.reach.progress import ProgressTracker, SavedProgress, publish_progress
from stream.reach.registers import Coupons, coupons_of

TABLE = "stream_reach_hours"
_TABLES = (TABLE, "stream_reach_days", "reach_hours_to_days")
_WORK = "reach"
_COLUMNS = ("time_ms", "campaign_id", "advertiser_id", "user", "decision")
# An insert costs ClickHouse some 20 ms of a core, however few rows it has.
_WRITE_EVERY_S = 10.0
_RETRY_EVERY_S = 60.0
# While of some partition nothing is known yet, which a moment after it was assigned it is.
_PUBLISH_AGAIN_S = 1.0
_MESSAGES, _FETCH_AHEAD_MB = 16, 8
_CLICKHOUSE_TIMEOUT_S, _REDIS_TIMEOUT_S = 30, 1.0
# For how long the end of the process may be delayed: what is not written is read again.
_STOP_S = 2.0


class ReachWriter:
    """One member of the group that reads `ad-archive` for reach. `run` blocks until `stop` is called."""

    def __init__(
        self,
        settings: Settings,
        *,
        write_every_s: float = _WRITE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[int], float] = pause_s,
    ) -> None:
        """`pause(failures)`: how long to pause after so many lost sessions in a row, in s."""
        self._settings, self._write_every_s, self._clock = settings, write_every_s, clock
        self._log = logs.get(_WORK)
        self._stopping = threading.Event()
        losses = (SessionLost, Unavailable, OffsetOutOfRange)
        self._sessions = Sessions(self._stopping, self._log, losses, clock, pause, _WORK)
        self._client = ClickHouse.of(settings, timeout_s=_CLICKHOUSE_TIMEOUT_S, connections=1)
        self._redis = Redis(settings.redis_access, timeout_s=_REDIS_TIMEOUT_S)
        self._additions = Additions(HOUR_MS)
        self._owned: set[int] = set()
        self._read_to: dict[int, int] = {}
        """Partition → the offset to commit once what is pending is written."""
        self._tables = ""
        """The UUIDs of _TABLES when partitions were assigned last."""
        self._since: float | None = None
        self._progress = ProgressTracker()
        self._publish_at = 0.0
        self._consumer: GroupConsumer

    def stop(self) -> None:
        """Write what is pending and return from `run`."""
        self._stopping.set()

    def run(self) -> None:
        """Consume until stopped. An error of another kind than a lost session is logged and reported, and all begins anew after a
        minute."""
        give_way_here(BACKGROUND)
        while not self._stopping.is_set():
            try:
                self._sessions.run(self._session)
            except Exception as error:
                self._log.error("reach is not written; it is tried again in a minute", why=repr(error))
                WAITS.begin(self, error, _WORK)
                self._stopping.wait(_RETRY_EVERY_S)
                WAITS.end(self)

    def _session(self) -> None:
        s = self._settings
        # Rows of the session before may not have arrived.
        self._forget()
        self._consumer = GroupConsumer(
            s.kafka_connection,
            s.topic(topics.REACH_GROUP),
            s.topic(topics.ARCHIVE),
            self._assigned,
            self._revoked,
            s.session_timeout_ms,
            fetch_ahead_mb=_FETCH_AHEAD_MB,
            on_end=self._progress.reach_end,
        )
        try:
            while not self._stopping.is_set():
                for message in self._consumer.consume(_MESSAGES, 0.2):
                    self._add(message)
                if self._since is None and self._consumer.is_assigned:
                    self._sessions.maybe_probe(self._probe)
                elif self._since is not None and self._clock() - self._since >= self._write_every_s:
                    self._write()
                if self._since is None and self._clock() >= self._publish_at:
                    self._publish()
            self._write()
        finally:
            self._owned.clear()
            self._progress.clear()
            self._read_to.clear()
            self._consumer.close()

    @cached_property
    def _admin(self) -> Admin:
        return Admin(self._settings.kafka_connection)

    def _forget(self) -> None:
        """Drop what is pending, which is read again, and what is known of the tables."""
        self._additions.forget()
        self._since = None

    def _probe(self) -> None:
        """Ask the group's coordinator and ClickHouse. Raises Unavailable."""
        self._consumer.committed(sorted(self._owned) or [0])
        self._read_tables()

    def _read_tables(self) -> str:
        """The UUIDs of _TABLES. Raises Unavailable; Refused where one is missing, without which days would lack what hours have."""
        ids = borders.table_ids(self._client, _TABLES)
        missing = [table for table in _TABLES if table not in ids]
        if missing:
            raise Refused(
                f"ClickHouse's database {self._client.database} lacks {' and '.join(missing)}",
                hint="adclick migrate", backend="clickhouse", code="UNKNOWN_TABLE",
            )  # fmt: skip
        return " ".join(ids[table] for table in _TABLES)

    def _assigned(self, partitions: list[int]) -> dict[int, int]:
        self._sessions.postpone_probe()
        self._read_to.clear()
        self._owned = set(partitions)
        self._progress.clear()
        if not partitions:
            return {}
        tables = self._read_tables()
        if tables != self._tables:
            self._forget()
        self._tables = tables
        topic, count = self._consumer.topic, max(partitions) + 1
        begins, ends = self._admin.starts(topic, count), self._admin.high_watermarks(topic, count)
        starts, repeated = dict[int, int](), list[int]()
        for committed in self._consumer.committed(partitions):
            p, offset = committed.partition, committed.offset
            saved = SavedProgress.decode(committed.metadata)
            # Offsets that were set by a tool name no tables.
            if saved.tables not in ("", tables):
                starts[p] = BEGINNING
                repeated.append(p)
                self._progress.begin(p, SavedProgress(), is_torn=begins[p] > 0)
                continue
            is_there = begins[p] <= offset <= ends[p]
            starts[p] = offset if is_there else BEGINNING
            self._progress.begin(p, saved, is_torn=not is_there and (offset >= 0 or begins[p] > 0))
            if offset >= 0 and not is_there:
                self._log.warning(
                    "messages were deleted before reach was counted from them", partition=p, expected=offset,
                    begins=begins[p], hint="reach lacks users of these events until adclick reconcile has run for their days",
                )  # fmt: skip
        if repeated:
            self._log.warning(
                "the tables of reach were made again: all of ad-archive is counted again", partitions=repeated,
                hint="reach lacks users of older events until adclick reconcile has run for their days",
            )  # fmt: skip
        return starts

    def _revoked(self, partitions: list[int]) -> None:
        self._owned.difference_update(partitions)
        for p in partitions:
            self._read_to.pop(p, None)
            self._progress.end(p)

    def _add(self, message: Any) -> None:
        p, offset = message.partition(), message.offset()
        if p not in self._owned:
            return
        where = f"{message.topic()}/{p}/{offset}"
        (times, campaigns, advertisers, coupons), header = decode_coupons(message.value(), where)
        done = 0
        while done < len(coupons):
            done += self._additions.add(times[done:], campaigns[done:], advertisers[done:], coupons[done:])
            if done < len(coupons):
                self._write()
        if p in self._owned:
            self._read_to[p] = offset + 1
            self._progress.add(p, offset, header)
            self._since = self._since or self._clock()

    def _write(self) -> None:
        """Insert what is pending, and commit where it was read to. Raises SessionLost where tables were made again since: what was left out
        because former ones have it must be read again."""
        if self._read_to and self._read_tables() != self._tables:
            raise SessionLost("a table of reach was made again")
        for rows in _tables(self._additions.take()):
            self._client.insert(TABLE, rows)
        faults.point("reach.written")
        if self._read_to:
            self._consumer.commit(
                [
                    Committed(p, offset, self._progress.saved(p, self._tables).encode())
                    for p, offset in self._read_to.items()
                ]
            )
            self._sessions.works()
        self._read_to.clear()
        self._since = None

    def _publish(self) -> None:
        """Publish how far users are counted, when nothing is pending; best effort: routers see that what they have is old."""
        self._publish_at, at_ms = self._clock() + min(self._write_every_s, _PUBLISH_AGAIN_S), now_ms()
        if not self._owned:
            return
        try:
            ends = self._admin.ends(self._consumer.topic, max(self._owned) + 1)
        except Unavailable:
            return
        progress = self._progress.current(dict(enumerate(ends)), at_ms)
        if progress.keys() == self._owned:
            self._publish_at = self._clock() + self._write_every_s
        publish_progress(self._redis, self._settings.key_prefix, progress)


def decode_coupons(value: bytes, where: str) -> tuple[tuple[Ints, Ints, Ints, Coupons], BlockHeader]:
    """Times (ms), campaigns, advertisers and coupons of the events in a message of `ad-archive`, and its header; coupon 0 for an event
    that is not counted, or has no user. Raises CorruptLog, naming `where`."""
    rows, header = blocks.decode_block(value, where, _COLUMNS)
    numbers = archive_schema.decode_numbers(rows)
    has_user = (numbers["decision"] == Decision.COUNTED) & (numbers["user"] != archive_schema.NO_VALUE)
    times, campaigns, advertisers, users = (numbers[name] for name in _COLUMNS[:4])
    return (times, campaigns, advertisers, coupons_of(users) * has_user), header


def _tables(rows: ReachRows) -> Iterator[pa.Table]:
    """One for each day: an insert over several partitions of a table is not atomic, and their number is limited."""
    days = rows.start_ms // DAY_MS
    edges = [*np.flatnonzero(np.diff(days, prepend=-1)).tolist(), len(rows)]
    offsets, coupons = pa.array(rows.edges.astype(np.int32)), pa.array(rows.coupons)
    table = pa.table(
        {
            "time": pa.array((rows.start_ms // 1000).astype(np.uint32)),
            "campaign_id": pa.array(rows.campaign_ids), "advertiser_id": pa.array(rows.advertiser_ids),
            "coupons": pa.ListArray.from_arrays(offsets, coupons),
        }
    )  # fmt: skip
    for first, end in pairwise(edges):
        yield table.slice(first, end - first)


@contextlib.contextmanager
def writing_reach(settings: Settings) -> Iterator[None]:
    """Write reach while the block runs, in a thread of its own, unless `settings.reach` is off."""
    if settings.reach == "off":
        yield
        return
    writer = ReachWriter(settings)
    thread = threading.Thread(target=writer.run, daemon=True, name="reach")
    thread.start()
    try:
        yield
    finally:
        writer.stop()
        thread.join(_STOP_S)
