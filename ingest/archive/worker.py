"""The archive worker: ad-archive → Parquet, durable before its offsets are committed.

Files lie under `event_date=/hour=` (of the event; of its arrival when it was too late for the stream), named by source
partition and offset range. After a crash ranges may overlap: readers count a (partition, offset) once. How far the
archive has got is in the metadata of the committed offset.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from infra import faults, logs
from infra.cli import declare
from infra.cli.app import App
from infra.clock import DAY_MS, HOUR_MS, iso, now_ms
from infra.errors import SessionLost, Unavailable
from infra.file_store import FileStore
from infra.kafka import topics
from infra.kafka.consumers import GroupConsumer
from infra.kafka.records import Committed
from infra.priority import BACKGROUND
from infra.retries import Sessions, pause_s
from infra.settings import Settings
from infra.worker_process import run_until_signal, start_worker
from ingest import blocks
from ingest.archive import compaction
from ingest.archive import files as archive_files
from ingest.archive import schema as archive_schema
from ingest.archive.progress import archived_canary_ms, archived_to, metadata_of
from ingest.archive.schema import Decision

_ROWS_PER_FILE = 400_000
_UPKEEP_EVERY_S = 60.0


@dataclass
class ArchivePartition:
    """Rows that wait for their file, still encoded: a third of the memory of decoded ones. Offsets [from, to) are those of the source."""

    from_offset: int | None
    to_offset: int | None
    next_message: int
    rows: list[pa.Table] = field(default_factory=list)
    count: int = 0
    since: float | None = None
    whole: bool = True
    """False between two parts of one block: a file must not end there."""
    canary_ms: int = 0
    """When the last canary before `to_offset` was sent."""


class ArchiveWorker:
    """One worker. `run` blocks until `stop` is called."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[int], float] = pause_s,
    ) -> None:
        """`pause(failures)`: how long to pause after so many lost sessions in a row, in s."""
        self._settings, self._name, self._store = settings, name, FileStore(settings.archive)
        self._clock = clock
        self._log = logs.get("archive").bind(worker=name)
        self._stopping = threading.Event()
        self._sessions = Sessions(self._stopping, self._log, (SessionLost, Unavailable), clock, pause)
        self._owned: dict[int, ArchivePartition] = {}
        self._upkeep: threading.Thread | None = None
        self._upkeep_at = 0.0
        self._consumer: GroupConsumer

    def stop(self) -> None:
        """Write what is in hand and return from `run`."""
        self._stopping.set()

    def run(self) -> None:
        """Consume until stopped; start a new session, with a growing pause, after each loss."""
        self._sessions.run(self._session)

    def _session(self) -> None:
        s = self._settings
        self._consumer = GroupConsumer(
            s.kafka_connection,
            s.topic(topics.ARCHIVE_GROUP),
            s.topic(topics.ARCHIVE),
            self._assigned,
            self._revoked,
            s.session_timeout_ms,
        )
        try:
            while not self._stopping.is_set():
                for message in self._consumer.consume(64, 0.2):
                    self._append(message)
                self._flush_due()
                # Rows that wait for their file are the better probe.
                is_idle = all(partition.since is None for partition in self._owned.values())
                if self._consumer.is_assigned and is_idle:
                    self._sessions.maybe_probe(self._probe)
                self._upkeep_due()
            self._flush_due(everything=True)
        finally:
            self._owned.clear()
            self._consumer.close()

    def _probe(self) -> None:
        """Ask the group's coordinator, and write to the archive. Raises Unavailable."""
        self._consumer.committed(sorted(self._owned) or [0])
        self._store.check_writable(f".probe-{self._name}")

    def _assigned(self, partitions: list[int]) -> dict[int, int]:
        self._owned.clear()
        self._sessions.postpone_probe()
        for committed in self._consumer.committed(partitions):
            first = committed.offset < 0
            to_offset = None if first else archived_to(committed.metadata)
            next_message, canary_ms = (0, 0) if first else (committed.offset, archived_canary_ms(committed.metadata))
            self._owned[committed.partition] = ArchivePartition(to_offset, to_offset, next_message, canary_ms=canary_ms)
        return {p: s.next_message for p, s in self._owned.items()}

    def _revoked(self, partitions: list[int]) -> None:
        for p in partitions:
            self._owned.pop(p, None)

    def _append(self, message: Any) -> None:
        partition = self._owned.get(message.partition())
        if partition is None:
            return
        where = f"{message.topic()}/{message.partition()}/{message.offset()}"
        rows, header = blocks.decode_block(message.value(), where)
        (source,) = header.ranges
        if header.part == 0:
            blocks.check_tiles(partition.to_offset, source, where)
        if partition.from_offset is None:
            partition.from_offset = source.from_offset
        partition.rows.append(rows)
        partition.count += rows.num_rows
        partition.since = partition.since or self._clock()
        partition.whole = header.part == header.parts - 1
        if partition.whole:
            partition.to_offset, partition.next_message = source.to_offset, message.offset() + 1
            partition.canary_ms = source.canary_ms

    def _flush_due(self, *, everything: bool = False) -> None:
        now = self._clock()
        for p, partition in list(self._owned.items()):
            if partition.since is None or partition.to_offset is None or partition.from_offset is None:
                continue
            if not partition.whole:
                continue
            age_ms = (now - partition.since) * 1000
            if not everything and partition.count < _ROWS_PER_FILE and age_ms < self._settings.archive_flush_ms:
                continue
            if partition.count:
                rows = pa.concat_tables(archive_schema.decode_archived(part) for part in partition.rows)
                write_files(self._store, p, partition.from_offset, partition.to_offset, rows)
            faults.point("archive.renamed")
            metadata = metadata_of(partition.to_offset, partition.canary_ms)
            self._consumer.commit([Committed(p, partition.next_message, metadata)])
            partition.rows, partition.count, partition.since = [], 0, None
            partition.from_offset = partition.to_offset
            self._sessions.works()

    def _upkeep_due(self) -> None:
        """Once a minute, in a thread of its own: merge small files of owned partitions, and remove the oldest days."""
        now = self._clock()
        if now < self._upkeep_at or (self._upkeep is not None and self._upkeep.is_alive()):
            return
        self._upkeep_at = now + _UPKEEP_EVERY_S
        self._upkeep = threading.Thread(target=self._run_upkeep, args=(list(self._owned),), daemon=True)
        self._upkeep.start()

    def _run_upkeep(self, partitions: list[int]) -> None:
        try:
            for group in compaction.due_groups(self._store, partitions, now_ms()):
                if self._stopping.is_set():
                    return
                merged = compaction.merge_files(self._store, group)
                faults.point("archive.merged")
                self._log.info("merged", files=len(group), into=merged)
            compaction.remove_merged(self._store, partitions, now_ms())
            if 0 in partitions:  # a day has files of all partitions: the owner of partition 0 removes it
                s = self._settings
                keep_days, most_bytes = s.archive_keep_days or None, s.archive_most_gb * 2**30 or None
                for day in compaction.remove_expired_days(self._store, now_ms(), keep_days, most_bytes):
                    self._log.warning("a day of the archive was removed", day=day)
        except (Unavailable, OSError) as error:
            self._log.warning("the archive's upkeep failed; it is tried again", error=str(error))


def write_files(store: FileStore, partition: int, from_offset: int, to_offset: int, rows: pa.Table) -> list[str]:
    """Write the rows of one source range, a file for each hour folder; returns their names once they are durable."""
    late = rows.column("decision").to_numpy() == Decision.TOO_LATE
    hours = np.where(late, rows.column("log_time_ms").to_numpy(), rows.column("time_ms").to_numpy()) // HOUR_MS
    written = []
    for hour in np.unique(hours).tolist():
        start_ms = hour * HOUR_MS
        folder = archive_files.folder_name(iso(start_ms)[:10], start_ms % DAY_MS // HOUR_MS)
        name = archive_files.file_name(partition, from_offset, to_offset)
        in_hour = hours == hour
        part = rows if in_hour.all() else rows.filter(pa.array(in_hour))
        written.append(archive_files.write_file(store, folder, name, archive_schema.stored_rows(part, partition)))
    return written


@declare.command("archive", "ADCLICK_ARCHIVE=/data/archive adclick archive")
def archive(app: App) -> None:
    """Run one archive worker: write every valid event, with the decision taken on it, to Parquet."""
    name = start_worker(app, "archive", BACKGROUND)
    run_until_signal(ArchiveWorker(app.settings, name), app.settings, name)
