"""Issued statements, in ClickHouse."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import msgspec
import pyarrow as pa

from infra.clickhouse.client import ClickHouse
from query.statements.contents import Contents


@dataclass(frozen=True)
class Issue:
    """A statement that was issued. `runs`: the current runs of its days then, sorted; `fence`: the number of the issuer's lease."""

    number: int
    digest: str
    issued_ms: int
    fence: int
    runs: tuple[str, ...]
    contents: Contents


class StatementStore:
    """Every method may raise Unavailable."""

    def __init__(self, client: ClickHouse) -> None:
        self._client = client

    def issues(self, advertiser: int, month: dt.date) -> list[Issue]:
        """All issues of a month, the first one first."""
        rows = self._client.rows(
            "SELECT issue, digest, toUnixTimestamp64Milli(issued_at), fence, runs, body"
            f" FROM {self._client.database}.statements WHERE advertiser_id = {{advertiser:UInt64}} AND month = {{month:Date}}"
            " ORDER BY issue, fence DESC, issued_at LIMIT 1 BY issue",
            {"advertiser": advertiser, "month": month},
        )
        return [
            Issue(int(number), digest, int(issued), int(fence), tuple(runs), msgspec.json.decode(body, type=Contents))
            for number, digest, issued, fence, runs, body in rows
        ]

    def add(self, issue: Issue) -> None:
        """Store an issue. Safe to repeat."""
        contents = issue.contents
        columns = {
            "advertiser_id": pa.array([contents.advertiser_id], pa.uint64()),
            "month": pa.array([contents.month], pa.date32()),
            "issue": pa.array([issue.number], pa.uint32()),
            "digest": [issue.digest],
            "issued_at": pa.array([issue.issued_ms], pa.timestamp("ms", "UTC")),
            "fence": pa.array([issue.fence], pa.uint64()),
            "runs": pa.array([list(issue.runs)], pa.list_(pa.string())),
            "body": [msgspec.json.encode(contents).decode()],
        }
        self._client.insert("statements", pa.table(columns))
