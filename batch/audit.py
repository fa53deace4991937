"""`adclick audit`: replays a day from the archive through the streaming core, without Kafka, and recomputes what was published.

The stream's verdict on an event is a function of its partition's log alone, and the archive has that log. So the same core, given
the archived rows of a partition in the order of their offsets, has to come to the decisions that were archived, and their sums have to
be the stream's hours. What is published has to come out of the archive again, byte by byte.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

import click
import numpy as np
import polars as pl

from batch import coverage, publish, recount
from batch.command import date_of
from infra import console, migration
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, day_start_ms, iso
from infra.columns import Values
from infra.console import App
from infra.errors import UserError
from infra.file_store import FileStore
from infra.priority import BACKGROUND, give_way
from ingest import archive_files, lateness
from ingest.archive_files import File
from ingest.archived import DECISIONS, Decision, decide
from ingest.dedup.decision import NOT_A_COPY, mark_copies_within
from ingest.dedup.digest import digest
from ingest.lateness import Lateness

DIFFERS_EXIT = 3
_SHOWN = 10
_PARTITION = attrgetter("partition")


@dataclass(frozen=True)
class Replayed:
    """A partition's log, judged again: how many verdicts there are, where they differ from the archived ones, and what they
    add up to by hour and all dimensions."""

    verdicts: int
    differing: pl.DataFrame
    sums: pl.DataFrame


def replay(rows: pl.DataFrame, horizon_ms: int, day_ms: int) -> Replayed:
    """Judge archived rows of one partition again, in the order of their offsets, each once.

    What overload and doubt did is taken from the archive: neither follows from the log.
    """
    rows = rows.unique("offset").sort("offset")
    archived = rows["decision"].to_physical().to_numpy()
    doubtful = archived == Decision.DOUBT
    known = np.flatnonzero(~doubtful)
    copy_of = np.full(len(rows), NOT_A_COPY, np.int64)
    found = copy_of[known]
    texts, offsets = rows["event_id"].gather(known), rows["offset"].to_numpy()
    generations = rows["log_time_ms"].to_numpy() // horizon_ms
    mark_copies_within(digest(_values(texts)), offsets[known], generations[known], found)
    copy_of[known] = found
    first = (copy_of == NOT_A_COPY) & ~doubtful
    late, _, _ = lateness.judge(rows["time_ms"].to_numpy(), first, lateness.NO_WATERMARK)
    decisions = decide(shed=archived == Decision.SHED, too_late=late == Lateness.TOO_LATE, copy=~first, doubt=doubtful)
    judged = rows.with_columns(replayed=pl.Series(decisions), archived=pl.Series(archived), late_again=pl.Series(late))
    judged = judged.filter(pl.col("time_ms").is_between(day_ms, day_ms + DAY_MS, closed="left"))
    counted = (pl.col("replayed") == int(Decision.COUNTED)) & (pl.col("late_again") != pl.col("lateness"))
    differing = judged.filter((pl.col("replayed") != pl.col("archived")) | counted)
    sums = judged.filter(pl.col("replayed") == int(Decision.COUNTED)).with_columns(
        cause=pl.lit(recount.EXACT), factor=pl.col("weight").cast(pl.Int64)
    )
    return Replayed(
        len(judged),
        differing.select("offset", "event_id", "archived", "replayed", "lateness", "late_again"),
        recount.weighed(sums),
    )


def _values(texts: pl.Series) -> Values:
    column = texts.to_arrow(compat_level=pl.CompatLevel.oldest())
    _, edges, data = column.buffers()
    ends = np.frombuffer(edges, np.int64)[column.offset : column.offset + len(column) + 1]
    return Values(np.frombuffer(data or b"", np.uint8), ends[:-1].copy(), ends[1:].copy()).copied()


def _logs(store: FileStore, files: Sequence[File], since_ms: int) -> Iterator[tuple[int, pl.DataFrame]]:
    """The archived log of each source partition, from a log time on."""
    for partition, mine in groupby(sorted(files, key=_PARTITION), key=_PARTITION):
        rows = recount.archived_rows(store, [file.name for file in mine])
        yield partition, rows.filter(pl.col("log_time_ms") >= since_ms)


@console.command("audit", "adclick audit --date 2026-11-20")
@click.option("--date", required=True, help="The day (UTC).")
@click.option("--master", default="local[*]", show_default=True, help="Spark master, for the exact numbers.")
def audit(app: App, date: str, master: str) -> int:
    """Prove a day from its archive: what the stream showed, decision by decision, and what was published, byte by byte.

    Exit 0 when both come out the same, 3 when they do not, 1 when it failed.
    """
    day = date_of(date)
    migration.check_tables(app.settings)
    store = FileStore(app.settings.archive)
    files = archive_files.around(store, day)
    if not files:
        raise UserError(f"nothing is archived for {day}", hint=f"looked below {store.shown}")
    client = ClickHouse(app.settings.clickhouse, app.settings.database)
    give_way(BACKGROUND)  # and Spark, which inherits it
    same = _streamed(app, client, store, files, day)
    return 0 if _published(app, client, store, files, day, master) and same else DIFFERS_EXIT


def _streamed(app: App, client: ClickHouse, store: FileStore, files: Sequence[File], day: dt.date) -> bool:
    """Whether the stream's verdicts and hours come out of the log again."""
    day_ms = day_start_ms(day)
    horizon_ms = app.settings.dedup_horizon_s * 1000
    sums, verdicts, shown = list[pl.DataFrame](), list[tuple[Any, ...]](), list[tuple[Any, ...]]()
    for partition, rows in _logs(store, files, day_ms - DAY_MS):
        found = replay(rows, horizon_ms, day_ms)
        sums.append(found.sums)
        verdicts.append((partition, f"{found.verdicts:,}", f"{len(found.differing):,}"))
        for offset, event_id, archived, replayed, late, again in found.differing.head(_SHOWN).rows():
            shown.append(
                (f"{partition}/{offset}", event_id, f"{DECISIONS[archived]}, {late}", f"{DECISIONS[replayed]}, {again}")
            )
    app.table(["partition", "verdicts", "differing"], verdicts)
    if shown:
        app.table(["message", "event", "archived", "replayed"], shown)
    keys = ("hour_ms", *recount.DIMENSIONS)
    mine = pl.concat(sums).group_by(keys).agg(pl.col(recount.MEASURES).sum())
    mine = mine.with_columns(pl.col(recount.NAMES).cast(pl.String))
    buckets, different = 0, list[tuple[Any, ...]]()
    for hour_ms in range(day_ms, day_ms + DAY_MS, HOUR_MS):
        theirs = _hour(client, hour_ms)
        both = mine.filter(pl.col("hour_ms") == hour_ms).join(
            theirs, on=keys, how="full", coalesce=True, suffix="_shown"
        )
        both = both.with_columns(pl.col(pl.Int64).fill_null(0))
        buckets += len(both)
        wrong = both.filter(pl.any_horizontal(pl.col(m) != pl.col(f"{m}_shown") for m in recount.MEASURES))
        for row in wrong.rows(named=True):
            told = {m: (row[f"{m}_shown"], row[m]) for m in recount.MEASURES}
            different.append((iso(hour_ms), row["campaign_id"], *(f"{a:,} / {b:,}" for a, b in told.values())))
    if different:
        app.table(["hour", "campaign", *(f"{m}: stream / replayed" for m in recount.MEASURES)], different[:_SHOWN])
    app.say(f"{day}: {buckets:,} buckets of the stream replayed, {len(different):,} differ")
    return not shown and not different


def _hour(client: ClickHouse, hour_ms: int) -> pl.DataFrame:
    """What the stream wrote of an hour, over its shards."""
    dims = ", ".join(
        f"toString({d}) AS {d}_" if d in recount.NAMES else f"toInt64({d}) AS {d}_" for d in recount.DIMENSIONS
    )
    sums = ", ".join(f"toInt64(sum({m})) AS {m}_" for m in recount.MEASURES)
    found = client.arrow(
        f"SELECT {dims}, {sums} FROM {client.database}.stream_hours FINAL WHERE time = toDateTime({{hour:UInt32}}, 'UTC')"
        f" GROUP BY {', '.join(f'{d}_' for d in recount.DIMENSIONS)}",
        {"hour": hour_ms // 1000},
    )
    names = {f"{n}_": n for n in (*recount.DIMENSIONS, *recount.MEASURES)}
    table = pl.DataFrame(pl.from_arrow(found)).rename(names)
    return table.with_columns(hour_ms=pl.lit(hour_ms, pl.Int64))


def _published(
    app: App, client: ClickHouse, store: FileStore, files: Sequence[File], day: dt.date, master: str
) -> bool:
    """Whether the published numbers come out of the archive again, byte by byte."""
    from batch import exact

    current = publish.current_run(client, day)
    if current is None:
        app.say(f"{day} has not been reconciled: there is nothing published to compare")
        return True
    table = f"audit_{uuid.uuid4().hex[:12]}"
    client.command(f"CREATE TABLE {client.database}.{table} AS {client.database}.exact_hours")
    try:
        with exact.running(app.settings, master) as spark:
            moves, _ = exact.count(spark, store.where, files, day, coverage.letters(app.settings, day), {})
            exact.write(moves, app.settings.clickhouse, app.settings.database, current[0], hours=table, ledger=None)
        again = publish.export_digest(client, current[0], table)
    finally:
        client.command(f"DROP TABLE IF EXISTS {client.database}.{table}")
    held, recorded = publish.export_digest(client, current[0]), publish.recorded_digest(client, current[0])
    same = again == held == recorded
    app.table(
        ["exact hours", "SHA-256"], [("recomputed", again), ("published", held), ("in the run's record", recorded)]
    )
    app.say(f"{day}: what run {current[0]} published {'comes' if same else 'DOES NOT COME'} out of the archive again")
    return same
