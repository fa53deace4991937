"""The table `directory` in ClickHouse, and the entries of `audit` about it. Every method may raise Unavailable."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import polars as pl
import pyarrow as pa

from infra.clickhouse.client import ClickHouse
from query.directory.entries import Entry, kind_of

_SELECTED = (
    "kind, id, name, advertiser_id, campaign_id, timezone, status, start_date AS start, end_date AS `end`, budget,"
    " budget_micros, deleted, version"
)
_COLUMNS: dict[str, Any] = {
    "kind": pa.string(), "id": pa.uint64(), "name": pa.string(), "advertiser_id": pa.uint64(), "campaign_id": pa.uint64(),
    "timezone": pa.string(), "status": pa.string(), "start_date": pa.date32(), "end_date": pa.date32(),
    "budget": pa.string(), "budget_micros": pa.uint64(), "deleted": pa.uint8(), "changed_at": pa.timestamp("ms", "UTC"),
    "version": pa.uint64(),
}  # fmt: skip
_AUDIT: dict[str, Any] = {
    "at": pa.timestamp("ms", "UTC"), "actor": pa.string(), "action": pa.string(), "subject": pa.string(), "detail": pa.string(),
}  # fmt: skip
# Where a field is stored under another name: `end` is a word of SQL.
_STORED = {"start": "start_date", "end": "end_date"}
# Of kinds that lack the field.
_ABSENT = {"advertiser_id": 0, "campaign_id": 0, "timezone": "", "status": ""}


@dataclass(frozen=True)
class Change:
    """An entry before and after; None: there is none."""

    former: Entry | None
    entry: Entry | None

    @property
    def action(self) -> str:
        """create, change or delete, as the audit log has it."""
        return "create" if self.former is None else "delete" if self.entry is None else "change"

    @property
    def subject(self) -> str:
        """Whom it is about, as the audit log has it: `campaign/7`."""
        entry = self.entry or self.former
        assert entry is not None
        return f"{kind_of(entry)}/{entry.id}"


class DirectoryStore:
    """Reads and writes the table. What it writes is decided by `query.directory.editor`."""

    def __init__(self, client: ClickHouse) -> None:
        self._client = client

    def read_since(self, version: int) -> pl.DataFrame:
        """All rows that are newer than a version, also those that newer ones have replaced."""
        sql = f"SELECT {_SELECTED} FROM {self._client.database}.directory WHERE version > {{version:UInt64}}"
        rows = pl.from_arrow(self._client.arrow(sql, {"version": version}))
        assert isinstance(rows, pl.DataFrame)
        return rows

    def summary(self) -> tuple[int, tuple[int, int]]:
        """The newest version, and of the entries that are there: how many, and the sum of their versions."""
        ((newest, count, versions),) = self._client.rows(
            "SELECT max(version), countIf(deleted = 0), sumIf(version, deleted = 0)"
            f" FROM {self._client.database}.directory FINAL"
        )
        return int(newest), (int(count), int(versions))

    def write(self, changes: Sequence[Change], version: int, actor: str, at: dt.datetime) -> None:
        """Write changes of distinct entries under one version, higher than all before. The audit log comes first: no change
        without an entry there."""
        audit = [(at, actor, change.action, change.subject, _detail(change)) for change in changes]
        self._client.insert("audit", _table(_AUDIT, [dict(zip(_AUDIT, row, strict=True)) for row in audit]))
        self._client.insert("directory", _table(_COLUMNS, [_row(change, version, at) for change in changes]))

    def audit(self, limit: int) -> list[tuple[str, str, str, str, str]]:
        """(at, actor, action, kind/id, detail) of changes of the directory, newest first."""
        rows = self._client.rows(
            "SELECT formatDateTime(at, '%Y-%m-%dT%H:%i:%SZ'), actor, action, subject, detail"
            f" FROM {self._client.database}.audit WHERE position(subject, '/') > 0 AND NOT startsWith(subject, 'webhook/') ORDER BY at DESC LIMIT {{limit:UInt32}}",
            {"limit": limit},
        )
        return [(row[0], row[1], row[2], row[3], row[4]) for row in rows]


def _row(change: Change, version: int, at: dt.datetime) -> Mapping[str, Any]:
    entry = change.entry or change.former
    assert entry is not None
    fields = {_STORED.get(name, name): value for name, value in msgspec.structs.asdict(entry).items()}
    own = {"kind": kind_of(entry), "deleted": int(change.entry is None), "changed_at": at, "version": version}
    return _ABSENT | fields | own


def _detail(change: Change) -> str:
    """What has changed: all of a new entry, the former and the new value of each field that differs, nothing of a deleted one
    but what it was."""
    former, entry = change.former, change.entry
    if former is None or entry is None:
        return msgspec.json.encode(entry or former).decode()
    before, after = msgspec.structs.asdict(former), msgspec.structs.asdict(entry)
    changed = {name: [before[name], after[name]] for name in after if before[name] != after[name]}
    return msgspec.json.encode(changed).decode()


def _table(columns: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    return pa.table({name: pa.array([row.get(name) for row in rows], kind) for name, kind in columns.items()})
