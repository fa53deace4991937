"""Reads hours and days from ClickHouse: the stream's, and the exact ones of a run. Parameters are bound, never spliced."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from infra.clickhouse.borders import read_published
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, now_ms
from infra.columnar.columns import Ints
from query import sums
from query.buckets import STORED_HOURS_MS
from query.plan import COLD, EXACT, EXACT_DAYS, EXACT_HOURS, WARM, Borders, Piece
from query.question import MEASURES, Question
from query.row_scope import RowScope
from query.sums import NAMES, Exact, Sums, of_halves

# A key lies in one partition, since the partition follows from its time: FINAL need not look across.
_SETTINGS = " SETTINGS do_not_merge_across_partitions_select_final = 1"
_TABLES = {WARM: "stream_hours", COLD: "stream_days", EXACT_HOURS: "exact_hours", EXACT_DAYS: "exact_days"}
_TIERS = {"hours": WARM, "days": COLD}
_NUMBERS = {name: {text: number for number, text in enumerate(values)} for name, values in NAMES.items()}


class StoredTiers:
    """The tiers of hours and days. Raises Unavailable when ClickHouse is away."""

    def __init__(self, client: ClickHouse, brief: ClickHouse, shards: int) -> None:
        """`brief`: a client with a short time-out, for what ClickHouse answers at once."""
        self._client, self._brief, self._shards = client, brief, shards

    def borders(self) -> bytes:
        """Tier borders and the current run of each day, of one moment; encoded; `decode_borders` reads them."""
        published = read_published(self._brief, self._shards)
        hours, days = published.tiers.get("hours"), published.tiers.get("days")
        warm_from_ms = hours.from_ms if hours else 0
        if days and days.from_ms:
            # Hours stand in for days that are lost, as far back as hours are stored.
            warm_from_ms = max(warm_from_ms, (now_ms() - STORED_HOURS_MS) // DAY_MS * DAY_MS)
        return msgspec.json.encode(
            Borders(
                warm_ms=hours.border_ms if hours else None,
                warm_closed_ms=hours.watermark_ms // HOUR_MS * HOUR_MS if hours else None,
                cold_ms=days.border_ms if days else None,
                watermark_ms=hours.watermark_ms if hours else None,
                runs={run.day_ms: run.run_id for run in published.runs},
                open_from_ms={run.day_ms: run.open_from_ms for run in published.runs if run.open_from_ms},
                warm_from_ms=warm_from_ms,
                cold_from_ms=days.from_ms if days else 0,
                void=tuple(_TIERS[tier] for tier in published.void),
                void_runs=tuple(run.day_ms for run in published.void_runs),
                table_ids={_TIERS[tier]: border.table_id for tier, border in published.tiers.items()},
            )
        )

    def read(self, question: Question, pieces: Sequence[Piece]) -> list[tuple[Sums, int]]:
        """The sums of each piece, and how many rows ClickHouse returned for it. The pieces are of one tier, and in the order of
        time: one statement reads them all, whichever runs they are of."""
        sql, parameters = self._statement(question, pieces)
        reply = self._client.arrow(sql, parameters)
        times = reply["bucket"].to_numpy().astype(np.int64) * 1000
        piece_numbers = np.searchsorted([piece.start_ms for piece in pieces], times, "right") - 1
        days = question.grain == "day" and pieces[0].tier in (WARM, EXACT_HOURS)
        buckets = times
        if question.grain == "total":
            buckets = np.full(len(times), question.start_ms, np.int64)
        elif days:
            hours, hour_numbers = np.unique(times, return_inverse=True)
            buckets = np.array([question.bucket(hour) for hour in hours.tolist()], np.int64)[hour_numbers]
        table = Sums(
            buckets,
            tuple(_group(g, reply[f"{g}_"]) for g in question.group_by),
            tuple(_wide(reply[f"{m}_"]) for m in MEASURES),
            *(reply[name].to_numpy().astype(bool) for name in ("_corrected", "_sampled")),
        )
        parts = [table]
        if len(pieces) > 1:
            parts = [sums.take(table, np.flatnonzero(piece_numbers == number)) for number in range(len(pieces))]
        return [(sums.sum_equal_keys(part) if days else part, len(part)) for part in parts]

    def _statement(self, question: Question, pieces: Sequence[Piece]) -> tuple[str, dict[str, Any]]:
        exact = pieces[0].tier in EXACT
        where, parameters = _within(pieces)
        # The start of the piece that a row lies in.
        start = "{start:UInt32}"
        if len(pieces) > 1:
            start = "roundDown(toUnixTimestamp(time), {starts:Array(UInt32)})"
            parameters["starts"] = [piece.start_ms // 1000 for piece in pieces]
        if exact:
            where.append("run_id IN {runs:Array(String)}")
            parameters["runs"] = [piece.run for piece in pieces]
            if len(pieces) > 1:
                where.append(f"run_id = {{runs:Array(String)}}[indexOf({{starts:Array(UInt32)}}, {start})]")
        subject, subject_parameters = row_conditions(question.campaigns, question.advertiser, question.scope)
        where += subject
        parameters |= subject_parameters
        for number, (name, values) in enumerate(question.filters):
            kind = "String" if name in NAMES else "UInt64"
            where.append(f"{name} IN {{filter{number}:Array({kind})}}")
            parameters[f"filter{number}"] = list(values)
        time = start if question.grain == "total" else "toUnixTimestamp(time)"
        groups = [f"toString({g}) AS {g}_" if g in NAMES else f"{g} AS {g}_" for g in question.group_by]
        # Amounts of many rows need more than 64 bits; `late` and `changed` only matter as "any".
        sums = [f"sum(toUInt128({m})) AS {m}_" for m in MEASURES]
        late, sampled = ("max(late)", "0") if exact else ("max(late + changed)", "max(sampled)")
        flags = [f"{late} > 0 AS _corrected", f"{sampled} > 0 AS _sampled"]
        keys = ", ".join(str(n + 1) for n in range(1 + len(groups)))
        table = _TABLES[pieces[0].tier]
        return (
            f"SELECT {', '.join([time + ' AS bucket', *groups, *sums, *flags])} FROM {self._client.database}.{table}"
            f" FINAL WHERE {' AND '.join(where)} GROUP BY {keys}{_SETTINGS}",
            parameters,
        )


def _within(pieces: Sequence[Piece]) -> tuple[list[str], dict[str, Any]]:
    """Conditions on the time of rows: in the range that the pieces span, and in none of the gaps between them; and their parameters."""
    parameters: dict[str, Any] = {"start": pieces[0].start_ms // 1000, "end": pieces[-1].end_ms // 1000}
    conditions = ["time >= toDateTime({start:UInt32}, 'UTC')", "time < toDateTime({end:UInt32}, 'UTC')"]
    for number, (piece, following) in enumerate(pairwise(pieces)):
        if piece.end_ms < following.start_ms:
            gap = f"gap{number}"
            conditions.append(
                f"(time < toDateTime({{{gap}:UInt32}}, 'UTC') OR time >= toDateTime({{{gap}_end:UInt32}}, 'UTC'))"
            )
            parameters |= {gap: piece.end_ms // 1000, f"{gap}_end": following.start_ms // 1000}
    return conditions, parameters


def row_conditions(
    campaigns: Sequence[int], advertiser: int | None, scope: RowScope
) -> tuple[list[str], dict[str, Any]]:
    """SQL conditions on the rows that a question is about and its key may see, and their parameters. No campaigns: all."""
    conditions, parameters = list[str](), dict[str, Any]()
    for name, ids in (("advertiser_id", scope.advertisers), ("campaign_id", scope.campaigns)):
        if ids is not None:
            conditions.append(f"{name} IN {{visible_{name}:Array(UInt64)}}")
            parameters[f"visible_{name}"] = sorted(ids)
    if advertiser is not None:
        conditions.append("advertiser_id = {advertiser:UInt64}")
        parameters["advertiser"] = advertiser
    if campaigns:
        conditions.append("campaign_id IN {campaigns:Array(UInt64)}")
        parameters["campaigns"] = list(campaigns)
    return conditions, parameters


def decode_borders(raw: bytes) -> Borders:
    """The borders that `StoredTiers.borders` has encoded."""
    return msgspec.json.decode(raw, type=Borders)


def _group(name: str, column: pa.ChunkedArray) -> Ints:
    """The values of a dimension; of a dimension of strings, their positions in NAMES."""
    if name not in NAMES:
        return np.asarray(column.to_numpy().astype(np.int64))
    texts = column.combine_chunks().dictionary_encode()
    numbers = np.array([_NUMBERS[name][text] for text in texts.dictionary.to_pylist()], np.int64)
    return np.asarray(numbers[texts.indices.to_numpy()])


def _wide(column: pa.ChunkedArray) -> Exact:
    """A column of 128-bit integers, which Arrow only knows as bytes."""
    raw = b"".join(chunk.buffers()[1][chunk.offset * 16 : (chunk.offset + len(chunk)) * 16] for chunk in column.chunks)
    halves = np.frombuffer(raw, "<u8").reshape(-1, 2)
    if halves[:, 1].any() or (halves[:, 0] >> np.uint64(63)).any():
        return of_halves(halves[:, 0], halves[:, 1], 64)
    return np.ascontiguousarray(halves[:, 0]).view(np.int64)
