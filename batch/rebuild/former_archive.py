"""The archive of an installation whose Kafka is lost, sent into a new one: in parts, each marked in Redis once it is acknowledged.

Sent twice, a part is counted once: copies within the dedup horizon are dropped, and the nightly run drops those beyond it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property

import polars as pl

from batch import publish
from infra import faults
from infra.cli.app import App
from infra.clickhouse.client import ClickHouse
from infra.clickhouse.retention import PUBLISHED_DAYS
from infra.errors import UserError
from infra.file_store import FileStore
from infra.redis.client import Redis
from infra.settings import Settings
from ingest.archive import files as archive_files
from ingest.archive.files import File
from ingest.replay.command import send_all
from ingest.replay.inputs import ArchiveWindow
from ingest.replay.sender import Pace

_NEW = (
    "a new installation has another ADCLICK_NAMESPACE, or another --dir, and another ADCLICK_ARCHIVE (docs/recovery.md)"
)
_SAMPLED_FILES, _SAMPLED_IDS = 50, 20
_SENT = "sent"


class FormerArchive:
    """One former archive, and what of it was sent to this installation."""

    def __init__(
        self, settings: Settings, redis: Redis, where: str, window_messages: int = 1_000_000, *, first_day: dt.date = dt.date.min
    ) -> None:  # fmt: skip
        """Days before `first_day` are left out. Raises UserError where it is this installation's own archive, or holds no files of other days."""
        self._settings, self._redis, self._store = settings, redis, FileStore(where)
        own = FileStore(settings.archive)
        if self._store.where == own.where:
            raise UserError(f"{own.shown} is this installation's own archive", hint=_NEW)
        self._window_messages = window_messages
        self._key = f"{settings.key_prefix}rebuild:{self._store.shown}"
        self.files = {
            archive_files.folder_date(folder): files
            for folder in archive_files.day_folders(self._store)
            if (files := archive_files.current_files(archive_files.parse_names(self._store.files(folder))))
        }
        """Day of a folder → its files."""
        expired = [day for day in self.files if day < first_day]
        for day in expired:
            del self.files[day]
        self.days_left_out = len(expired)
        """How many days are before `first_day`."""
        if expired and not self.files:
            raise UserError(
                f"all {len(expired)} days of {self._store.shown} are before {first_day}, and can no longer be billed",
                hint=f"published days are kept for {PUBLISHED_DAYS} days",
            )
        if not self.files:
            raise UserError(
                f"{self._store.shown} holds no files of an archive", hint="--archive names the former installation's"
            )

    @property
    def shown(self) -> str:
        """Its name in messages."""
        return self._store.shown

    def was_begun(self) -> bool:
        """Whether this installation has begun to take it before. Raises Unavailable."""
        return bool(self._redis.call("EXISTS", self._key))

    @cached_property
    def _in_order(self) -> list[File]:
        return [file for of_day in self.files.values() for file in of_day]

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256("\n".join(file.name for file in self._in_order).encode()).hexdigest()[:16]

    @cached_property
    def windows(self) -> list[ArchiveWindow]:
        """The whole archive, in parts of so many messages that a part fits into memory. Of each source partition they follow each other
        in the order of offsets, which is what verdicts on lateness depend on."""
        files = self._in_order
        partitions = sorted({file.partition for file in files})
        first = {p: min(f.from_offset for f in files if f.partition == p) for p in partitions}
        size = {p: max(f.to_offset for f in files if f.partition == p) - first[p] for p in partitions}
        count = max(1, -(-sum(size.values()) // self._window_messages))
        windows = list[ArchiveWindow]()
        for n in range(count):
            offsets = {p: (first[p] + size[p] * n // count, first[p] + size[p] * (n + 1) // count) for p in partitions}
            of_window = [
                f for f in files if f.from_offset < offsets[f.partition][1] and offsets[f.partition][0] < f.to_offset
            ]
            shown = f"{self.shown}, part {n + 1} of {count}"
            windows.append(
                ArchiveWindow(
                    self._store.where, shown, rereadable=True, store=self._store, files=of_window, offsets=offsets
                )
            )
        return windows

    def left(self) -> list[int]:
        """Which windows are not marked as sent. Raises Unavailable."""
        sent = {name.decode() for name in self._redis.call("HKEYS", self._key)}
        return [n for n in range(len(self.windows)) if self._mark(n) not in sent]

    def _mark(self, window: int) -> str:
        """Of the archive as it is: where files were added since, or a day has expired, windows are others."""
        return f"{self._digest}:{window}"

    def refuse_former_installation(self, client: ClickHouse) -> None:
        """Raise UserError where this installation has these events, or has published their days: it is the former one. Raises
        Unavailable."""
        runs = publish.current_runs(client)
        for day in self.files:
            if current := runs.get(day):
                raise UserError(
                    f"database {client.database} has run {current[0]} of {day}: this is the former installation, or {day} was"
                    " counted here before",
                    hint=_NEW,
                )
        if known := self._known_here():
            raise UserError(f"this installation has events of {self.shown} already, such as {known}", hint=_NEW)

    def _known_here(self) -> str:
        """An id of this archive that the installation's own has, too, of a sample; empty where there is none."""
        own = FileStore(self._settings.archive)
        own_files = [f for day in archive_files.day_folders(own) for f in archive_files.parse_names(own.files(day))]
        if not own_files:
            return ""
        files = self._in_order
        ids = set[str]()
        for file in files[:: max(1, len(files) // _SAMPLED_FILES)]:
            ids |= set(_ids(self._store, file)[:_SAMPLED_IDS].to_list())
        wanted = pl.Series(sorted(ids))
        for file in own_files:
            own_ids = _ids(own, file)
            if len(known := own_ids.filter(own_ids.is_in(wanted))):
                return str(known[0])
        return ""

    def send(self, app: App, left: Sequence[int], on_window: Callable[[int], None]) -> int:
        """Send windows, and mark each; returns how many events were sent. Raises AdclickError where some were not acknowledged."""
        sent, windows = 0, self.windows
        self._redis.call("HSET", self._key, "begun", "1")
        for n in left:
            if windows[n].files:
                sent += send_all(app, [windows[n]], Pace()).sent
            faults.point("rebuild.sent")
            self._redis.call("HSET", self._key, self._mark(n), _SENT)
            on_window(n)
        return sent


def _ids(store: FileStore, file: File) -> pl.Series:
    return archive_files.read_columns(store, file.name, ("event_id",))["event_id"].cast(pl.String)
