"""Reads changed cells from ClickHouse: what the stream corrected, and what nightly runs replaced, between two cuts.

The value of a cell at a cut is that of the day's run at the cut, where there is one, else the sum over shards of the newest flush in
the cut. A window that closed after the first cut begins with what it had when it closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.clickhouse import borders
from infra.clickhouse.client import ClickHouse
from infra.clickhouse.closed_cells import TABLE, marks_of
from infra.clock import DAY_MS, iso
from ingest.partials import BILLED
from query.changes import TIERS, ChangesQuestion, Cut, sign_cut
from query.signing import Signer
from query.tiers.clickhouse import row_conditions

# Rows of a flush are looked for among those of the day of the cut and later: by the clock of ClickHouse, which may be set back.
_CLOCK_MS = DAY_MS
_Range = tuple[int, int]


@dataclass(frozen=True)
class _Run:
    """The run that answers for a day up to `end_ms`, at some cut."""

    run_id: str
    day_ms: int
    end_ms: int
    published_ms: int

    @property
    def whole(self) -> bool:
        """Whether it holds for all of the day."""
        return self.end_ms == self.day_ms + DAY_MS


class ChangesReader:
    """Every method may raise Unavailable."""

    def __init__(self, client: ClickHouse, shards: int) -> None:
        self._client, self._shards = client, shards

    def answer(self, question: ChangesQuestion, signer: Signer) -> dict[str, Any]:
        """Cells in the order of their change, as they go over HTTP; `as_of` is the `since` of the next question."""
        runs = self._runs()
        since, until = question.since, question.until
        if since is None or until is None:
            then, now = self._cuts(question.since_ms, runs)
            since, until = since or then, until or now
        before, after = _current(runs, since.published_ms), _current(runs, until.published_ms)
        rows = self._rows(question, since, until, before, after)
        page, more = rows[: question.limit], len(rows) > question.limit
        causes = self._causes(question, page, before, after)
        last = (int(page[-1][0]), int(page[-1][1]), int(page[-1][2])) if page else (0, 0, 0)
        return {
            "data": [_cell(row, causes) for row in page],
            "rows": len(page),
            "granularity": question.grain,
            "next_cursor": question.cursor(since, until, last, signer) if more else None,
            "as_of": sign_cut(until, signer),
        }

    # -- cuts -----------------------------------------------------------------------------------------------

    def _runs(self) -> list[tuple[int, tuple[int, int], _Run]]:
        """(publication, precedence, run) of all runs whose rows are there."""
        db = self._client.database
        rows = self._client.rows(
            f"""WITH ({borders.ids_query(self._client, ("exact_hours", "exact_days"))}) AS ids
                SELECT toUInt64(toUnixTimestamp(toDateTime(date, 'UTC'))), run_id, fence, toUInt64(toUnixTimestamp64Milli(published_at)),
                    open_from_ms
                FROM {db}.runs WHERE hours_id = ids['exact_hours'] AND days_id = ids['exact_days']"""
        )
        runs = []
        for day_s, run_id, fence, published_ms, open_from_ms in rows:
            day_ms = int(day_s) * 1000
            run = _Run(run_id, day_ms, int(open_from_ms) or day_ms + DAY_MS, int(published_ms))
            runs.append((int(published_ms), (int(fence), int(published_ms)), run))
        return runs

    def _cuts(self, since_ms: int, runs: Sequence[tuple[int, tuple[int, int], _Run]]) -> tuple[Cut, Cut]:
        """The state at a moment, and the present one."""
        tiers = {marks_of(tier): tier for tier in TIERS.values()}
        rows = self._client.rows(
            f"""SELECT tier, shard, max(version), maxIf(version, at <= fromUnixTimestamp64Milli({{since:Int64}}, 'UTC')),
                    toUInt64(toUnixTimestamp64Milli(max(at)))
                FROM {self._client.database}.{TABLE} WHERE tier IN {{tiers:Array(String)}} AND shard < {{shards:UInt16}}
                GROUP BY tier, shard""",
            {"since": since_ms, "tiers": list(tiers), "shards": self._shards},
        )
        then = {tier: [0] * self._shards for tier in TIERS.values()}
        now = {tier: [0] * self._shards for tier in TIERS.values()}
        newest_ms = since_ms
        for marks, shard, newest, newest_then, at_ms in rows:
            tier = tiers[marks]
            now[tier][shard], then[tier][shard] = int(newest), int(newest_then)
            newest_ms = max(newest_ms, int(at_ms))
        published = max((published_ms for published_ms, *_ in runs), default=0)
        published_then = max((published_ms for published_ms, *_ in runs if published_ms <= since_ms), default=0)
        return Cut(then, published_then, since_ms), Cut(now, published, max(newest_ms, published))

    # -- cells ----------------------------------------------------------------------------------------------

    def _rows(
        self, question: ChangesQuestion, since: Cut, until: Cut, before: dict[int, _Run], after: dict[int, _Run]
    ) -> list[tuple[Any, ...]]:
        """(changed at, bucket, campaign, cause, from…, to…) of changed cells, one more than a page."""
        days = before.keys() | after.keys()
        replaced = [day for day in days if _is_replaced(question.grain, before.get(day), after.get(day))]
        settled = [day for day in days if day not in replaced]
        # Where one run answers at both cuts, what the stream counts meanwhile is not shown.
        hidden = [(day, day + DAY_MS) for day in replaced] + [(day, before[day].end_ms) for day in settled]
        conditions, parameters = row_conditions(question.campaigns, question.advertiser, question.scope)
        visible = " AND ".join(["1", *conditions])
        tier = TIERS[question.grain]
        parameters |= {
            "tier": tier, "a": since.flushes[tier], "b": until.flushes[tier], "ah": since.flushes["hours"],
            "bh": until.flushes["hours"], "from_day": max(0, since.at_ms - _CLOCK_MS) // 1000, "limit": question.limit + 1,
        }  # fmt: skip
        statements = [self._corrected(visible, hidden, parameters)]
        if replaced:
            statements.append(self._replaced(question.grain, visible, replaced, before, after, parameters))
        behind = "1"
        if question.after is not None:
            behind = "(changed, bucket, campaign_id) > ({x:UInt64}, {y:UInt64}, {z:UInt64})"
            parameters |= dict(zip("xyz", question.after, strict=True))
        amounts = ", ".join(f"{side}_{m}" for side in ("f", "t") for m in BILLED)
        return self._client.rows(
            f"SELECT changed, bucket, campaign_id, cause, {amounts} FROM ({' UNION ALL '.join(statements)})"
            f" WHERE {behind} ORDER BY changed, bucket, campaign_id LIMIT {{limit:UInt32}}",
            parameters,
        )

    def _corrected(self, visible: str, hidden: Sequence[_Range], parameters: dict[str, Any]) -> str:
        parameters |= _ranges("hidden", hidden)
        cells, differs = self._history("{tier:String}", "{a:Array(UInt64)}", "{b:Array(UInt64)}"), _differs()
        changed = f"""SELECT time, campaign_id FROM {self._client.database}.{TABLE}
            WHERE tier = {{tier:String}} AND at >= toDateTime({{from_day:UInt32}}, 'UTC') AND changed > 0
                AND version > {{a:Array(UInt64)}}[shard + 1] AND version <= {{b:Array(UInt64)}}[shard + 1]"""
        return f"""SELECT toUInt64(toUnixTimestamp(max(at_))) AS changed, toUInt64(toUnixTimestamp(time)) AS bucket, campaign_id,
                'late' AS cause, {_sums("f", "f_")}, {_sums("t", "t_")}
            FROM ({cells} AND {visible} AND (time, campaign_id) IN ({changed}) AND NOT {_within("time", "hidden")}
                GROUP BY time, campaign_id, advertiser_id, shard)
            GROUP BY time, campaign_id HAVING {differs}"""

    def _history(self, tier: str, since: str, until: str) -> str:
        """What each shard had of a cell at two cuts, up to the WHERE; to be grouped by time, campaign, advertiser and shard."""
        first = f"version <= {since}[shard + 1]"
        columns = []
        for m in BILLED:
            # Without a row at the first cut: nothing, in a window that had closed by then; else what it had when it closed.
            began = f"if(argMin(closing, version) = 1, argMin({m}, version), 0)"
            columns.append(f"if(countIf({first}) > 0, argMaxIf({m}, version, {first}), {began}) AS f_{m}")
            columns.append(f"argMax({m}, version) AS t_{m}")
        return f"""SELECT time, campaign_id, advertiser_id, shard, {", ".join(columns)}, maxIf(at, changed > 0) AS at_
            FROM {self._client.database}.{TABLE}
            WHERE tier = {tier} AND shard < length({until}) AND version <= {until}[shard + 1]"""

    def _replaced(
        self, grain: str, visible: str, days: Sequence[int], before: dict[int, _Run], after: dict[int, _Run],
        parameters: dict[str, Any],
    ) -> str:  # fmt: skip
        """Cells of days that another run answers for: every value of both sides, with a sign, summed."""
        parts: list[str] = []
        for side, runs, cut, hour_cut in (("f", before, "a", "ah"), ("t", after, "b", "bh")):
            by_hours = [day for day in days if grain == "hour" or (day in runs and not runs[day].whole)]
            by_days = [day for day in days if day not in by_hours]
            for table, tier, among, name, bounds in (
                ("exact_hours", "hours", by_hours, f"{side}h", hour_cut),
                ("exact_days", "days", by_days, f"{side}d", cut),
            ):
                if among:
                    parts += self._side(side, name, table, tier, among, runs, bounds, after, visible, parameters)
        bucket = "time" if grain == "hour" else "toStartOfDay(time)"
        parameters |= {"days": [day // 1000 for day in days]}
        parameters |= {"published": [after[day].published_ms // 1000 if day in after else 0 for day in days]}
        parameters |= {"by_run": [int(_other_run(before.get(day), after.get(day))) for day in days]}
        position = "indexOf({days:Array(UInt64)}, toUInt64(toUnixTimestamp(toStartOfDay(time))))"
        return f"""SELECT any({{published:Array(UInt64)}}[{position}]) AS changed, toUInt64(toUnixTimestamp({bucket})) AS bucket, campaign_id,
                if(any({{by_run:Array(UInt8)}}[{position}]) = 1, 'reconciled', 'late') AS cause, {_sums("f", "f_")}, {_sums("t", "t_")}
            FROM ({" UNION ALL ".join(parts)}) GROUP BY bucket, campaign_id HAVING {_differs()}"""

    def _side(
        self, side: str, name: str, table: str, tier: str, days: Sequence[int], runs: dict[int, _Run], cut: str,
        after: dict[int, _Run], visible: str, parameters: dict[str, Any],
    ) -> list[str]:  # fmt: skip
        """What days had at a cut: rows of their runs, and of the stream where no run answers. Where the history of the stream is not
        kept, what it had when the run of the second cut was made, which its ledger tells."""
        db, answering = self._client.database, [runs[day] for day in days if day in runs]
        parts = []
        if answering:
            parameters |= {f"{name}_runs": [run.run_id for run in answering]} | _ranges(
                f"{name}_run", [(r.day_ms, r.end_ms) for r in answering]
            )
            parts.append(
                f"SELECT time, campaign_id, {_signed(side)} FROM {db}.{table} FINAL WHERE run_id IN {{{name}_runs:Array(String)}}"
                f" AND {visible} AND {_within('time', f'{name}_run')}"
            )
        rest = [(runs[day].end_ms if day in runs else day, day + DAY_MS) for day in days]
        rest = [(start_ms, end_ms) for start_ms, end_ms in rest if start_ms < end_ms]
        if not rest:
            return parts
        parameters |= _ranges(f"{name}_rest", rest) | {f"{name}_tier": tier}
        bounds, within = f"{{{cut}:Array(UInt64)}}", _within("time", f"{name}_rest")
        until = "{b:Array(UInt64)}" if cut == "a" else "{bh:Array(UInt64)}" if cut == "ah" else bounds
        history = self._history(f"{{{name}_tier:String}}", bounds, until)
        picked = ", ".join(f"{_zero_but(side, side, m)}" for m in BILLED)
        parts.append(
            f"SELECT time, campaign_id, {picked} FROM ({history} AND {visible} AND {within}"
            f" GROUP BY time, campaign_id, advertiser_id, shard)"
        )
        known = f"SELECT DISTINCT time FROM {db}.{TABLE} WHERE tier = {{{name}_tier:String}} AND {within}"
        if side == "f" and (made := [after[day].run_id for day in days if day in after]):
            parameters |= {f"{name}_made": made}
            for source, sign in ((table, ""), ("ledger", "-")):
                time = "toStartOfDay(time)" if source == "ledger" and tier == "days" else "time"
                parts.append(
                    f"SELECT {time} AS time, campaign_id, {_signed(side, sign)} FROM (SELECT * FROM {db}.{source} FINAL"
                    f" WHERE run_id IN {{{name}_made:Array(String)}} AND {visible}"
                    f" AND {within} AND {time} NOT IN ({known}))"
                )
        return parts

    # -- causes ---------------------------------------------------------------------------------------------

    def _causes(
        self,
        question: ChangesQuestion,
        page: Sequence[tuple[Any, ...]],
        before: dict[int, _Run],
        after: dict[int, _Run],
    ) -> dict[tuple[int, int], dict[str, dict[str, int]]]:
        """(bucket, campaign) → cause → what it changed, of the cells that a run replaced."""
        cells = [(int(row[1]), int(row[2])) for row in page if row[3] == "reconciled"]
        days = {bucket * 1000 // DAY_MS * DAY_MS for bucket, _ in cells}
        made = [after[day].run_id for day in days if day in after]
        former = [before[day].run_id for day in days if day in before]
        if not cells:
            return {}
        conditions, parameters = row_conditions(question.campaigns, question.advertiser, question.scope)
        bucket = "time" if question.grain == "hour" else "toStartOfDay(time)"
        amounts = ", ".join(f"sum(if(run_id IN {{made:Array(String)}}, {m}, -{m}))" for m in BILLED)
        rows = self._client.rows(
            f"""SELECT toUInt64(toUnixTimestamp({bucket})) AS bucket, campaign_id, cause, {amounts}
                FROM {self._client.database}.ledger FINAL
                WHERE {" AND ".join(["run_id IN {all:Array(String)}", "campaign_id IN {named:Array(UInt64)}", *conditions])}
                GROUP BY bucket, campaign_id, cause""",
            parameters | {"made": made, "all": [*made, *former], "named": sorted({campaign for _, campaign in cells})},
        )
        causes: dict[tuple[int, int], dict[str, dict[str, int]]] = {cell: {} for cell in cells}
        for at, campaign, cause, *values in rows:
            if (cell := (int(at), int(campaign))) in causes and any(values):
                causes[cell][cause] = dict(zip(BILLED, map(int, values), strict=True))
        return causes


def _current(runs: Sequence[tuple[int, tuple[int, int], _Run]], published_ms: int) -> dict[int, _Run]:
    """Day → its run, by what was published until a moment."""
    best: dict[int, tuple[tuple[int, int], _Run]] = {}
    for at_ms, precedence, run in runs:
        if at_ms <= published_ms and (run.day_ms not in best or precedence > best[run.day_ms][0]):
            best[run.day_ms] = precedence, run
    return {day: run for day, (_, run) in best.items()}


def _other_run(before: _Run | None, after: _Run | None) -> bool:
    return (before and (before.run_id, before.end_ms)) != (after and (after.run_id, after.end_ms))


def _is_replaced(grain: str, before: _Run | None, after: _Run | None) -> bool:
    """Whether a day must be summed from both cuts: another run answers, or one for a part of it while days are asked for."""
    in_parts = grain == "day" and after is not None and not after.whole
    return _other_run(before, after) or in_parts


def _cell(row: Sequence[Any], causes: dict[tuple[int, int], dict[str, dict[str, int]]]) -> dict[str, Any]:
    changed, bucket, campaign, cause = int(row[0]), int(row[1]), int(row[2]), row[3]
    before, after = (dict(zip(BILLED, map(int, row[4 + n * len(BILLED) :]), strict=False)) for n in range(2))
    cell: dict[str, Any] = {
        "time": iso(bucket * 1000), "campaign_id": campaign, "from": before, "to": after, "cause": cause,
        "finality": "reconciled" if cause == "reconciled" else "corrected", "changed_at": iso(changed * 1000),
    }  # fmt: skip
    if cause == "reconciled":
        named = causes.get((bucket, campaign), {})
        rest = {m: after[m] - before[m] - sum(amounts[m] for amounts in named.values()) for m in BILLED}
        # What the stream had corrected by itself until the run was made.
        cell["causes"] = named | ({"corrected": rest} if any(rest.values()) else {})
    return cell


# -- SQL ------------------------------------------------------------------------------------------------------


def _sums(side: str, prefix: str) -> str:
    return ", ".join(f"sum(toInt128({side}_{m})) AS {prefix}{m}" for m in BILLED)


def _differs() -> str:
    return " OR ".join(f"f_{m} != t_{m}" for m in BILLED)


def _signed(side: str, sign: str = "") -> str:
    return ", ".join(_zero_but(side, f"{sign}toInt128", m, call=True) for m in BILLED)


def _zero_but(side: str, value: str, measure: str, *, call: bool = False) -> str:
    """Both sides of a measure: the value for one of them, 0 for the other."""
    amount = f"{value}({measure})" if call else f"toInt128({value}_{measure})"
    both = {"f": "toInt128(0)", "t": "toInt128(0)"} | {side: amount}
    return ", ".join(f"{both[name]} AS {name}_{measure}" for name in ("f", "t"))


def _ranges(name: str, ranges: Sequence[_Range]) -> dict[str, list[int]]:
    starts, ends = ([ms // 1000 for ms in moments] for moments in zip(*ranges, strict=True)) if ranges else ([], [])
    return {f"{name}_starts": starts, f"{name}_ends": ends}


def _within(time: str, name: str) -> str:
    return (
        f"arrayExists((s, e) -> toUnixTimestamp({time}) >= s AND toUnixTimestamp({time}) < e,"
        f" {{{name}_starts:Array(UInt64)}}, {{{name}_ends:Array(UInt64)}})"
    )
