"""Reads hours and days from ClickHouse: the stream's, and the exact ones of a run. Parameters are bound, never spliced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from infra.clickhouse.client import ClickHouse
from infra.clock import HOUR_MS
from infra.columns import Ints
from query import sums
from query.plan import COLD, EXACT, EXACT_DAYS, EXACT_HOURS, WARM, Borders, Piece
from query.request import MEASURES, Question
from query.sums import NAMES, Exact, Sums, of_halves

# A key lies in one partition, since the partition follows from its time: FINAL need not look across.
_SETTINGS = " SETTINGS do_not_merge_across_partitions_select_final = 1"
_TABLES = {WARM: "stream_hours", COLD: "stream_days", EXACT_HOURS: "exact_hours", EXACT_DAYS: "exact_days"}
_NUMBERS = {name: {text: number for number, text in enumerate(values)} for name, values in NAMES.items()}


class StoredTiers:
    """Raises Unavailable when ClickHouse is away."""

    def __init__(self, client: ClickHouse, brief: ClickHouse, shards: int) -> None:
        """`brief` has less patience: what it is asked is answered at once."""
        self._client, self._brief, self._shards = client, brief, shards

    def borders(self) -> bytes:
        """Tier borders and the current run of each day, of one moment; `borders_of` reads them."""
        db = self._client.database
        found = self._brief.rows(
            f"""SELECT 'tier', toString(tier), toUInt64(count()), min(border), min(watermark) FROM (
                    SELECT tier, shard, max(border_ms) AS border, max(watermark_ms) AS watermark
                    FROM {db}.tier_borders WHERE shard < {{shards:UInt16}} GROUP BY tier, shard) GROUP BY tier
                UNION ALL
                SELECT 'run', run_id, toUInt64(toUnixTimestamp(toDateTime(date, 'UTC'))), open_from_ms, toUInt64(0) FROM {db}.current_runs""",
            {"shards": self._shards},
        )
        tiers = {
            name: (border, mark)
            for kind, name, count, border, mark in found
            if kind == "tier" and count == self._shards
        }
        hours, days = tiers.get("hours"), tiers.get("days")
        return msgspec.json.encode(
            Borders(
                warm_ms=hours and hours[0],
                warm_closed_ms=hours and hours[1] // HOUR_MS * HOUR_MS,
                cold_ms=days and days[0],
                watermark_ms=hours and hours[1],
                runs={seconds * 1000: run for kind, run, seconds, _, _ in found if kind == "run"},
                open_from_ms={seconds * 1000: ms for kind, _, seconds, ms, _ in found if kind == "run" and ms},
            )
        )

    def read(self, question: Question, piece: Piece) -> tuple[Sums, int]:
        """Sums of one piece, and how many rows of groups came back."""
        sql, parameters = self._statement(question, piece, piece.tier in EXACT)
        found = self._client.arrow(sql, parameters)
        buckets = found["bucket"].to_numpy().astype(np.int64) * 1000
        days = question.grain == "day" and piece.tier in (WARM, EXACT_HOURS)
        if question.grain == "total":
            buckets[:] = question.start_ms
        elif days:
            hours, which = np.unique(buckets, return_inverse=True)
            buckets = np.array([question.bucket(hour) for hour in hours.tolist()], np.int64)[which]
        table = Sums(
            buckets,
            tuple(_group(g, found[f"{g}_"]) for g in question.group_by),
            tuple(_wide(found[f"{m}_"]) for m in MEASURES),
            *(found[name].to_numpy().astype(bool) for name in ("_corrected", "_sampled")),
        )
        return (sums.summed(table) if days else table), found.num_rows

    def _statement(self, question: Question, piece: Piece, exact: bool) -> tuple[str, dict[str, Any]]:
        parameters: dict[str, Any] = {"start": piece.start_ms // 1000, "end": piece.end_ms // 1000}
        where = ["time >= toDateTime({start:UInt32}, 'UTC')", "time < toDateTime({end:UInt32}, 'UTC')"]
        if exact:
            where.append("run_id = {run:String}")
            parameters["run"] = piece.run
        subject, of = whose(question.campaigns, question.advertiser, question.scope)
        where += subject
        parameters |= of
        for number, (name, values) in enumerate(question.filters):
            kind = "String" if name in NAMES else "UInt64"
            where.append(f"{name} IN {{filter{number}:Array({kind})}}")
            parameters[f"filter{number}"] = list(values)
        time = "{start:UInt32}" if question.grain == "total" else "toUnixTimestamp(time)"
        groups = [f"toString({g}) AS {g}_" if g in NAMES else f"{g} AS {g}_" for g in question.group_by]
        # Amounts of many rows need more than 64 bits; `late` and `changed` only matter as "any".
        sums = [f"sum(toUInt128({m})) AS {m}_" for m in MEASURES]
        late, sampled = ("max(late)", "0") if exact else ("max(late + changed)", "max(sampled)")
        flags = [f"{late} > 0 AS _corrected", f"{sampled} > 0 AS _sampled"]
        keys = ", ".join(str(n + 1) for n in range(1 + len(groups)))
        return (
            f"SELECT {', '.join([time + ' AS bucket', *groups, *sums, *flags])} FROM {self._client.database}.{_TABLES[piece.tier]}"
            f" FINAL WHERE {' AND '.join(where)} GROUP BY {keys}{_SETTINGS}",
            parameters,
        )


def whose(
    campaigns: Sequence[int], advertiser: int | None, scope: frozenset[int] | None
) -> tuple[list[str], dict[str, Any]]:
    """The conditions on rows that a question is about and its key may see, and their parameters. No campaigns: all."""
    found, parameters = list[str](), dict[str, Any]()
    if scope is not None:
        found.append("advertiser_id IN {scope:Array(UInt64)}")
        parameters["scope"] = sorted(scope)
    if advertiser is not None:
        found.append("advertiser_id = {advertiser:UInt64}")
        parameters["advertiser"] = advertiser
    if campaigns:
        found.append("campaign_id IN {campaigns:Array(UInt64)}")
        parameters["campaigns"] = list(campaigns)
    return found, parameters


def borders_of(held: bytes) -> Borders:
    """What `StoredTiers.borders` told."""
    return msgspec.json.decode(held, type=Borders)


def _group(name: str, column: pa.ChunkedArray) -> Ints:
    """Values of a dimension; numbers of names."""
    if name not in NAMES:
        return np.asarray(column.to_numpy().astype(np.int64))
    told = column.combine_chunks().dictionary_encode()
    numbers = np.array([_NUMBERS[name][text] for text in told.dictionary.to_pylist()], np.int64)
    return np.asarray(numbers[told.indices.to_numpy()])


def _wide(column: pa.ChunkedArray) -> Exact:
    """Integers of 128 bits, which Arrow only knows as bytes."""
    raw = b"".join(chunk.buffers()[1][chunk.offset * 16 : (chunk.offset + len(chunk)) * 16] for chunk in column.chunks)
    halves = np.frombuffer(raw, "<u8").reshape(-1, 2)
    if halves[:, 1].any() or (halves[:, 0] >> np.uint64(63)).any():
        return of_halves(halves[:, 0], halves[:, 1], 64)
    return np.ascontiguousarray(halves[:, 0]).view(np.int64)
