"""Finds the archived messages of one event: in the files, and in what of `ad-archive` is not in a file yet.

Of a file only the column of ids is read, and the others where it has the id: a core searches 26 million ids of 32 characters a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from infra.errors import AdclickError
from infra.file_store import FileStore
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.consumers import offset_at, read_stretches
from infra.settings import Settings
from ingest import blocks
from ingest.archive import files as archive_files
from ingest.archive import schema as archive_schema
from ingest.archive.files import File, UnreadableFile
from ingest.archive.progress import archived_to

# A bucket's requests take their time without taking a core.
_BUCKET_THREADS = 16
_SECONDS = 30.0
_COLUMNS = (
    "partition", "offset", "log_time_ms", "event_id", "event_type", "time_ms", "campaign_id", "ad_id", "advertiser_id",
    "publisher_id", "country", "device", "cost_micros", "decision", "weight", "lateness", "copy_of",
)  # fmt: skip


@dataclass(frozen=True)
class ArchivedMessage:
    """A message with the decision on it. `file`: the archive's file that has it; empty while none has."""

    partition: int
    offset: int
    log_time_ms: int
    event_id: str
    event_type: str
    time_ms: int
    campaign_id: int
    ad_id: int
    advertiser_id: int
    publisher_id: int
    country: str
    device: str
    cost_micros: int
    decision: str
    weight: int
    lateness: int
    copy_of: int | None
    file: str = ""

    @property
    def place(self) -> tuple[int, int]:
        """Partition and offset: what no other message has."""
        return self.partition, self.offset


@dataclass
class FilesSearch:
    """What a search of files has found, and how much it has read."""

    messages: list[ArchivedMessage] = field(default_factory=list)
    files: int = 0
    rows: int = 0
    unreadable: list[str] = field(default_factory=list)
    """Why files could not be read."""


def search_files(
    store: FileStore, files: Sequence[File], event_id: str, advance: Callable[[], object] = lambda: None
) -> FilesSearch:
    """Search files for an id; one that cannot be read is named, and passed over. `advance` is called after each. Raises Unavailable."""
    search = FilesSearch()
    with ThreadPoolExecutor(os.cpu_count() if store.folder is not None else _BUCKET_THREADS) as pool:
        futures = [pool.submit(_search_file, store, file, event_id) for file in files]
        try:
            for future in futures:
                try:
                    rows, messages = future.result()
                except UnreadableFile as error:
                    search.unreadable.append(str(error))
                else:
                    search.files, search.rows = search.files + 1, search.rows + rows
                    search.messages += messages
                advance()
        finally:
            # After an error, or Ctrl-C.
            pool.shutdown(wait=False, cancel_futures=True)
    return search


def _search_file(store: FileStore, file: File, event_id: str) -> tuple[int, list[ArchivedMessage]]:
    """How many rows a file has, and those of the event."""
    messages = list[ArchivedMessage]()
    with (
        archive_files.reading(store, file.name),
        store.open(file.name) as source,
        parquet.ParquetFile(source) as opened,
    ):
        for group in range(opened.num_row_groups):
            ids = opened.read_row_group(group, ["event_id"], use_threads=False).column("event_id")
            places = _places_of(ids, event_id)
            if len(places):
                rows = opened.read_row_group(group, list(_COLUMNS), use_threads=False).take(places)
                messages += _messages(rows, file.name)
        return opened.metadata.num_rows, messages


def _places_of(ids: pa.ChunkedArray, event_id: str) -> pa.Array:
    return pc.indices_nonzero(pc.equal(ids, pa.scalar(event_id, ids.type)))


def _messages(rows: pa.Table, file: str = "") -> Iterator[ArchivedMessage]:
    for row in rows.to_pylist():
        yield ArchivedMessage(**{name: row[name] for name in _COLUMNS}, file=file)


@dataclass
class TopicSearch:
    """What a search of `ad-archive` has found. `read` of the `waiting` messages of the topic were searched: fewer where time ran out.
    `archived_to`: by partition, the offset below which every event is in a file."""

    messages: list[ArchivedMessage] = field(default_factory=list)
    read: int = 0
    waiting: int = 0
    archived_to: list[int] = field(default_factory=list)


def search_topic(
    settings: Settings, event_id: str, since_ms: int | None = None, seconds: float = _SECONDS
) -> TopicSearch:
    """Search the messages of `ad-archive` that are in no file yet; with `since_ms`, all that were written since. Raises Unavailable,
    CorruptLog."""
    topic, connection = settings.topic(topics.ARCHIVE), settings.kafka_connection
    admin, search = Admin(connection), TopicSearch()
    count = min(settings.event_partitions, admin.partitions().get(topic, 0))
    if not count:
        return search
    starts, ends = admin.starts(topic, count), admin.ends(topic, count)
    committed = admin.committed(settings.topic(topics.ARCHIVE_GROUP), topic, count)
    search.archived_to = [archived_to(c.metadata) for c in committed]
    if since_ms is None:
        firsts = [max(start, c.offset) for start, c in zip(starts, committed, strict=True)]
    else:
        firsts = [max(start, offset_at(connection, topic, p, since_ms)) for p, start in enumerate(starts)]
    stretches = {p: (first, end) for p, (first, end) in enumerate(zip(firsts, ends, strict=True)) if first < end}
    search.waiting = sum(end - first for first, end in stretches.values())
    failures = list[AdclickError]()

    def take(message: Any) -> None:
        where = f"{topic}/{message.partition()}/{message.offset()}"
        try:
            rows, _ = blocks.decode_block(message.value(), where)
            rows = archive_schema.decode_archived(rows)
        except AdclickError as error:
            failures.append(error)
            return
        places = _places_of(rows.column("event_id"), event_id)
        if len(places):
            search.messages.extend(_messages(archive_schema.stored_rows(rows.take(places), message.partition())))

    if stretches:
        reached = read_stretches(connection, topic, stretches, take, seconds)
        search.read = sum(reached[p] - first for p, (first, _) in stretches.items())
    if failures and not search.messages:
        raise failures[0]
    return search


def files_with(files: Sequence[File], offsets: Mapping[int, Sequence[int]]) -> list[File]:
    """The files whose ranges have one of some offsets, by source partition."""
    return [f for f in files if any(f.from_offset <= offset < f.to_offset for offset in offsets.get(f.partition, ()))]
