"""Reads hours and days from ClickHouse: the stream's, and the exact ones of a run. Parameters are bound, never spliced."""

from __future__ import annotations

import time
from typing import Any

from infra.clickhouse.client import ClickHouse
from infra.clock import HOUR_MS
from query.answer import Sums, Table
from query.plan import COLD, EXACT, EXACT_DAYS, EXACT_HOURS, WARM, Borders, Piece
from query.request import MEASURES, Question

# A key lies in one partition, since the partition follows from its time: FINAL need not look across.
_SETTINGS = " SETTINGS do_not_merge_across_partitions_select_final = 1"
_TABLES = {WARM: "stream_hours", COLD: "stream_days", EXACT_HOURS: "exact_hours", EXACT_DAYS: "exact_days"}


class StoredTiers:
    """Raises Unavailable when ClickHouse is away."""

    def __init__(self, client: ClickHouse, shards: int) -> None:
        self._client, self._shards = client, shards
        self._borders: tuple[float, Borders | None] = (0.0, None)

    def borders(self, *, max_age_s: float = 0.0) -> Borders:
        """Tier borders and the current run of each day: one question to one moment, or an answer not older than that."""
        asked_at, known = self._borders
        if known is not None and time.monotonic() - asked_at <= max_age_s:
            return known
        asked_at = time.monotonic()
        known = self._ask_borders()
        self._borders = (asked_at, known)
        return known

    def _ask_borders(self) -> Borders:
        db = self._client.database
        found = self._client.rows(
            f"""SELECT 'tier', toString(tier), toUInt64(count()), min(border), min(watermark) FROM (
                    SELECT tier, shard, max(border_ms) AS border, max(watermark_ms) AS watermark
                    FROM {db}.tier_borders WHERE shard < {{shards:UInt16}} GROUP BY tier, shard) GROUP BY tier
                UNION ALL
                SELECT 'run', argMax(run_id, published_at), toUInt64(toUnixTimestamp(toDateTime(date, 'UTC'))), 0, 0
                FROM {db}.runs GROUP BY date""",
            {"shards": self._shards},
        )
        tiers = {
            name: (border, mark)
            for kind, name, count, border, mark in found
            if kind == "tier" and count == self._shards
        }
        return Borders(
            warm_ms=tiers["hours"][0] if "hours" in tiers else None,
            warm_closed_ms=tiers["hours"][1] // HOUR_MS * HOUR_MS if "hours" in tiers else None,
            cold_ms=tiers["days"][0] if "days" in tiers else None,
            watermark_ms=tiers["hours"][1] if "hours" in tiers else None,
            runs={seconds * 1000: run for kind, run, seconds, _, _ in found if kind == "run"},
        )

    def read(self, question: Question, piece: Piece) -> tuple[Table, int]:
        """Sums of one piece, and how many rows of groups came back."""
        exact = piece.tier in EXACT
        sql, parameters = self._statement(question, piece, exact)
        table: Table = {}
        found = self._client.rows(sql, parameters)
        width = len(question.group_by)
        for row in found:
            key = (question.bucket(int(row[0]) * 1000), *row[1 : 1 + width])
            values = row[1 + width : 1 + width + len(MEASURES)]
            late, sampled = row[-2:]
            table.setdefault(key, Sums()).add(map(int, values), corrected=bool(late), sampled=bool(sampled))
        return table, len(found)

    def _statement(self, question: Question, piece: Piece, exact: bool) -> tuple[str, dict[str, Any]]:
        parameters: dict[str, Any] = {"start": piece.start_ms // 1000, "end": piece.end_ms // 1000}
        where = ["time >= toDateTime({start:UInt32}, 'UTC')", "time < toDateTime({end:UInt32}, 'UTC')"]
        if exact:
            where.append("run_id = {run:String}")
            parameters["run"] = piece.run
        if question.advertiser is not None:
            where.append("advertiser_id = {advertiser:UInt64}")
            parameters["advertiser"] = question.advertiser
        else:
            where.append("campaign_id IN {campaigns:Array(UInt64)}")
            parameters["campaigns"] = list(question.campaigns)
        for number, (name, values) in enumerate(question.filters):
            kind = "String" if name in ("country", "device") else "UInt64"
            where.append(f"{name} IN {{filter{number}:Array({kind})}}")
            parameters[f"filter{number}"] = list(values)
        time = "{start:UInt32}" if question.grain == "total" else "toUnixTimestamp(time)"
        groups = [f"toString({g})" if g in ("country", "device") else g for g in question.group_by]
        sums = [f"sum(toUInt128({m}))" for m in MEASURES]
        # Amounts of many rows need more than 64 bits; `late` and `changed` only matter as "any".
        flags = ["max(late)", "0"] if exact else ["max(late + changed)", "max(sampled)"]
        keys = ", ".join(str(n + 1) for n in range(1 + len(groups)))
        return (
            f"SELECT {', '.join([time + ' AS bucket', *groups, *sums, *flags])} FROM {self._client.database}.{_TABLES[piece.tier]}"
            f" FINAL WHERE {' AND '.join(where)} GROUP BY {keys}{_SETTINGS}",
            parameters,
        )
