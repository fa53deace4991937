"""Reads users from ClickHouse: of each bucket, how many registers have which rank. Registers themselves stay there.

A union of hours, days, runs and campaigns is the greatest coupon of each register over all of their rows, so rows that merges have not
united yet, or that were written twice, need no FINAL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, MINUTE_MS
from infra.errors import UserError
from infra.structs import decodable
from query.plan import Piece
from query.question import Question
from query.reach import OF_RUNS, RUN_DAYS, RUNS, STREAM_DAYS, STREAM_HOURS, Users
from query.tiers.clickhouse import row_conditions
from query.tiers.user_registers import UserRegisters
from stream.reach.progress import Progress

# A database whose tables of users were made within this time after its first one has had them from the start.
_SET_UP_MS = 10 * MINUTE_MS
# Of one question.
_MOST_GROUPS = 100_000
_GROUPS = ("bucket", "campaign")


class TooManyGroups(UserError):
    """A question has more buckets and groups than users are read of at once."""


@decodable
class TablesOfUsers(msgspec.Struct, frozen=True):
    """What the tables of users have. `hour_runs`, `day_runs`: those nightly runs, of some, whose users are all stored, and those in
    RUN_DAYS. `since_ms`: what the stream counted before this has no users, since its tables did not exist; 0: it has from the start.
    `run_tables`: the UUIDs of the tables of runs."""

    hour_runs: tuple[str, ...]
    day_runs: tuple[str, ...]
    since_ms: int
    run_tables: tuple[str, ...]


@dataclass(frozen=True)
class UsersReply:
    """The users of a question, and how many rows ClickHouse returned for them."""

    users: Users
    rows_read: int


class StoredUsers:
    """The tables of users. Raises Unavailable when ClickHouse is away, Refused when it has no such tables or too little memory."""

    def __init__(self, client: ClickHouse, timeout_s: float, progress: Callable[[], list[Progress | None]]) -> None:
        """`timeout_s`: after which ClickHouse ends a statement by itself. `progress`: reads how far users are counted, by partition."""
        self._client, self._progress = client, progress
        self._registers = UserRegisters(client, timeout_s)

    def progress(self) -> list[Progress | None]:
        """How far the stream has counted users, by partition of events; None where it is not known."""
        return self._progress()

    def tables(self, runs: Sequence[str]) -> TablesOfUsers:
        """What is known of the tables and of these runs."""
        db, of_users = self._client.database, (STREAM_HOURS, STREAM_DAYS, *OF_RUNS)
        stored = {self._client.deployment.stored(table): table for table in of_users}
        rows = self._client.rows(
            f"""SELECT 'hours', run_id, toInt64(0) FROM {db}.{RUNS} WHERE run_id IN {{runs:Array(String)}} GROUP BY run_id
            UNION ALL SELECT 'days', run_id, toInt64(0) FROM {db}.{RUN_DAYS} WHERE run_id IN {{runs:Array(String)}} GROUP BY run_id
            UNION ALL SELECT name, toString(uuid), toInt64(toUnixTimestamp(metadata_modification_time)) FROM system.tables
            WHERE database = {{database:String}} AND name IN {{tables:Array(String)}}
            UNION ALL SELECT 'database', '', toInt64(toUnixTimestamp(min(applied_at))) FROM {db}.migrations""",
            {"database": db, "runs": list(runs), "tables": list(stored)},
        )
        rows = [(stored.get(name, name), value, at_s) for name, value, at_s in rows]
        made_ms = {name: at_s * 1000 for name, _, at_s in rows}
        since_ms = max(made_ms.get(name, 0) for name in (STREAM_HOURS, STREAM_DAYS))
        # One whose last row is not there has users in part.
        whole = {run for kind, run, _ in rows if kind == "hours"}
        return TablesOfUsers(
            tuple(sorted(whole)),
            tuple(sorted(run for kind, run, _ in rows if kind == "days" and run in whole)),
            0 if since_ms < made_ms["database"] + _SET_UP_MS else since_ms,
            tuple(sorted(table_id for name, table_id, _ in rows if name in OF_RUNS)),
        )

    def read(self, question: Question, pieces: Sequence[Piece]) -> UsersReply:
        """The users of each bucket and campaign of a question, from the pieces of `plan_users`. Raises TooManyGroups."""
        rows, parameters = self._rows(question, pieces)
        size = self._registers.count_groups(_GROUPS, rows, parameters) if question.group_by else 1
        if size > _MOST_GROUPS:
            raise TooManyGroups(
                f"the range has {size:,} rows, and users are read of {_MOST_GROUPS:,} at most; retry with a shorter range, larger buckets or "
                "fewer campaigns"
            )
        distinct, users, rows_read = self._registers.estimate_users(_GROUPS, rows, parameters, size)
        buckets = distinct[0] * 1000 if question.grain != "total" else np.full(len(users), question.start_ms, np.int64)
        return UsersReply(Users(buckets, distinct[1], users), rows_read)

    def _rows(self, question: Question, pieces: Sequence[Piece]) -> tuple[str, dict[str, Any]]:
        """A query of the rows of all pieces, and its parameters."""
        subject, parameters = row_conditions(question.campaigns, question.advertiser, question.scope)
        for _, values in question.filters:
            subject.append("campaign_id IN {filtered:Array(UInt64)}")
            parameters["filtered"] = list(values)
        bucket, bucket_parameters = _bucket(question)
        parameters |= bucket_parameters
        campaign = "campaign_id" if question.group_by else "toUInt64(0)"
        selects = list[str]()
        for table in dict.fromkeys(piece.tier for piece in pieces):
            where, table_parameters = _within(table, [piece for piece in pieces if piece.tier == table])
            parameters |= table_parameters
            selects.append(
                f"SELECT {bucket} AS bucket, {campaign} AS campaign, CAST(coupons AS Array(UInt32)) AS coupons"
                f" FROM {self._client.database}.{table} WHERE {' AND '.join([*where, *subject])}"
            )
        return " UNION ALL ".join(selects), parameters


def _bucket(question: Question) -> tuple[str, dict[str, Any]]:
    """The bucket that a row lies in, in epoch seconds, and its parameters."""
    if question.grain == "total":
        return "toUInt32(0)", {}
    if question.grain == "hour":
        return "toUnixTimestamp(time)", {}
    if question.utc_days:
        return f"intDiv(toUnixTimestamp(time), {DAY_MS // 1000}) * {DAY_MS // 1000}", {}
    starts = [start_ms // 1000 for start_ms in question.buckets()]
    return "roundDown(toUnixTimestamp(time), {buckets:Array(UInt32)})", {"buckets": starts}


def _within(table: str, pieces: Sequence[Piece]) -> tuple[list[str], dict[str, Any]]:
    """Conditions on the rows of a table: those of its pieces. A run has rows of its own day alone, so runs need no borders but those
    of the day that one covers in part."""
    edges: dict[int, bool] = {}
    for piece in pieces:
        edges[piece.start_ms // 1000] = True
        edges.setdefault(piece.end_ms // 1000, False)
    first, last = min(edges), max(edges)
    conditions = [f"time >= toDateTime({{{table}_start:UInt32}}, 'UTC')", f"time < toDateTime({{{table}_end:UInt32}}, 'UTC')"]  # fmt: skip
    parameters: dict[str, Any] = {f"{table}_start": first, f"{table}_end": last}
    if not all(begins for edge, begins in edges.items() if edge != last):
        begins, every = f"{table}_begins", f"{table}_edges"
        conditions.append(
            f"has({{{begins}:Array(UInt32)}}, roundDown(toUnixTimestamp(time), {{{every}:Array(UInt32)}}))"
        )
        parameters |= {begins: [edge for edge, begin in edges.items() if begin], every: sorted(edges)}
    if table in OF_RUNS:
        conditions.append(f"run_id IN {{{table}_runs:Array(String)}}")
        parameters[f"{table}_runs"] = [piece.run for piece in pieces]
    return conditions, parameters
