"""`adclick audit`: replays a day from the archive through the streaming core, without Kafka, and recomputes what was published.

The stream's verdict on an event is a function of its partition's log alone, and the archive has that log. So the same core, given
the archived rows of a partition in the order of their offsets, has to come to the decisions that were archived, and their sums have to
be the stream's hours. The archive has to reproduce what was published, byte by byte.
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

from batch import archived_rows, coverage, move_tables, publish
from batch.archived_rows import Archives
from batch.reconcile import parse_date
from batch.regions import read_regions
from infra import migration
from infra.cli import declare
from infra.cli.app import App
from infra.clickhouse import schema
from infra.clickhouse.client import ClickHouse, connector
from infra.clock import DAY_MS, HOUR_MS, day_start_ms, iso
from infra.columnar.columns import Values
from infra.errors import UserError
from infra.file_store import FileStore
from infra.priority import BACKGROUND, give_way
from ingest import lateness
from ingest.archive import files as archive_files
from ingest.archive.files import File
from ingest.archive.schema import DECISIONS, Decision, choose_decisions
from ingest.dedup.copies import NOT_A_COPY, mark_copies_within
from ingest.dedup.digest import digest_ids
from ingest.lateness import Lateness
from ingest.partials import BILLED

DIFFERS_EXIT = 3
_SHOWN = 10
_PARTITION = attrgetter("partition")


@dataclass(frozen=True)
class ReplayedPartition:
    """A partition's log, judged again: how many verdicts there are, where they differ from the archived ones, and what they
    add up to by hour and all dimensions."""

    verdicts: int
    differing: pl.DataFrame
    sums: pl.DataFrame


def replay_partition(rows: pl.DataFrame, horizon_ms: int, day_ms: int) -> ReplayedPartition:
    """Judge archived rows of one partition again, in the order of their offsets, each once.

    What overload and doubt did is taken from the archive: neither follows from the log.
    """
    rows = rows.unique("offset").sort("offset")
    archived = rows["decision"].to_physical().to_numpy()
    doubtful = archived == Decision.DOUBT
    known = np.flatnonzero(~doubtful)
    copy_of = np.full(len(rows), NOT_A_COPY, np.int64)
    copy_of_known = copy_of[known]
    texts, offsets = rows["event_id"].gather(known), rows["offset"].to_numpy()
    generations = rows["log_time_ms"].to_numpy() // horizon_ms
    mark_copies_within(digest_ids(_values(texts)), offsets[known], generations[known], copy_of_known)
    copy_of[known] = copy_of_known
    first = (copy_of == NOT_A_COPY) & ~doubtful
    late, _, _ = lateness.judge_lateness(rows["time_ms"].to_numpy(), first, lateness.NO_WATERMARK)
    decisions = choose_decisions(
        shed=archived == Decision.SHED, too_late=late == Lateness.TOO_LATE, copy=~first, doubt=doubtful
    )
    judged = rows.with_columns(replayed=pl.Series(decisions), archived=pl.Series(archived), late_again=pl.Series(late))
    judged = judged.filter(pl.col("time_ms").is_between(day_ms, day_ms + DAY_MS, closed="left"))
    counted = (pl.col("replayed") == int(Decision.COUNTED)) & (pl.col("late_again") != pl.col("lateness"))
    differing = judged.filter((pl.col("replayed") != pl.col("archived")) | counted)
    sums = judged.filter(pl.col("replayed") == int(Decision.COUNTED)).with_columns(
        cause=pl.lit(move_tables.EXACT), factor=pl.col("weight").cast(pl.Int64)
    )
    return ReplayedPartition(
        len(judged),
        differing.select("offset", "event_id", "archived", "replayed", "lateness", "late_again"),
        move_tables.weighted_sums(sums),
    )


def _values(texts: pl.Series) -> Values:
    column = texts.to_arrow(compat_level=pl.CompatLevel.oldest())
    _, edges, data = column.buffers()
    ends = np.frombuffer(edges, np.int64)[column.offset : column.offset + len(column) + 1]
    return Values(np.frombuffer(data or b"", np.uint8), ends[:-1].copy(), ends[1:].copy()).copied()


def _logs(store: FileStore, files: Sequence[File], since_ms: int) -> Iterator[tuple[int, pl.DataFrame]]:
    """The archived log of each source partition, from a log time on."""
    for partition, partition_files in groupby(sorted(files, key=_PARTITION), key=_PARTITION):
        rows = archived_rows.read_rows(Archives([store.where]), [file.reference for file in partition_files])
        yield partition, rows.filter(pl.col("log_time_ms") >= since_ms)


@declare.command("audit", "adclick audit --date 2026-11-20")
@click.option("--date", required=True, help="The day (UTC).")
@click.option("--master", default="local[*]", show_default=True, help="Spark master, for the exact numbers.")
def audit(app: App, date: str, master: str) -> int:
    """Prove a day from its archive: what the stream showed, decision by decision, and what was published, byte by byte.

    Exit 0 when both come out the same, 3 when they do not, 1 when it failed.
    """
    day = parse_date(date)
    migration.check_tables(app.settings)
    store = FileStore(app.settings.archive)
    files = archive_files.files_around(store, day)
    if not files:
        raise UserError(f"nothing is archived for {day}", hint=f"looked below {store.shown}")
    client = ClickHouse.of(app.settings)
    give_way(BACKGROUND)  # and Spark, which inherits it
    same = _streamed(app, client, store, files, day)
    return 0 if _published(app, client, day, master) and same else DIFFERS_EXIT


def _streamed(app: App, client: ClickHouse, store: FileStore, files: Sequence[File], day: dt.date) -> bool:
    """Whether the stream's verdicts and hours come out of the log again."""
    day_ms = day_start_ms(day)
    horizon_ms = app.settings.dedup_horizon_s * 1000
    sums, verdicts, shown = list[pl.DataFrame](), list[tuple[Any, ...]](), list[tuple[Any, ...]]()
    for partition, rows in _logs(store, files, day_ms - DAY_MS):
        replayed = replay_partition(rows, horizon_ms, day_ms)
        sums.append(replayed.sums)
        verdicts.append((partition, f"{replayed.verdicts:,}", f"{len(replayed.differing):,}"))
        for offset, event_id, archived, decided, late, again in replayed.differing.head(_SHOWN).rows():
            shown.append(
                (f"{partition}/{offset}", event_id, f"{DECISIONS[archived]}, {late}", f"{DECISIONS[decided]}, {again}")
            )
    app.table(["partition", "verdicts", "differing"], verdicts)
    if shown:
        app.table(["message", "event", "archived", "replayed"], shown)
    keys = ("hour_ms", *move_tables.DIMENSIONS)
    replayed_hours = pl.concat(sums).group_by(keys).agg(pl.col(BILLED).sum())
    replayed_hours = replayed_hours.with_columns(pl.col(move_tables.NAMES).cast(pl.String))
    buckets, different = 0, list[tuple[Any, ...]]()
    for hour_ms in range(day_ms, day_ms + DAY_MS, HOUR_MS):
        stream_hours = _hour(client, hour_ms)
        both = replayed_hours.filter(pl.col("hour_ms") == hour_ms).join(
            stream_hours, on=keys, how="full", coalesce=True, suffix="_shown"
        )
        both = both.with_columns(pl.col(pl.Int64).fill_null(0))
        buckets += len(both)
        wrong = both.filter(pl.any_horizontal(pl.col(m) != pl.col(f"{m}_shown") for m in BILLED))
        for row in wrong.rows(named=True):
            amounts = {m: (row[f"{m}_shown"], row[m]) for m in BILLED}
            different.append((iso(hour_ms), row["campaign_id"], *(f"{a:,} / {b:,}" for a, b in amounts.values())))
    if different:
        app.table(["hour", "campaign", *(f"{m}: stream / replayed" for m in BILLED)], different[:_SHOWN])
    app.say(f"{day}: {buckets:,} buckets of the stream replayed, {len(different):,} differ")
    return not shown and not different


def _hour(client: ClickHouse, hour_ms: int) -> pl.DataFrame:
    """What the stream wrote of an hour, over its shards."""
    dims = ", ".join(
        f"toString({d}) AS {d}_" if d in move_tables.NAMES else f"toInt64({d}) AS {d}_" for d in move_tables.DIMENSIONS
    )
    sums = ", ".join(f"toInt64(sum({m})) AS {m}_" for m in BILLED)
    reply = client.arrow(
        f"SELECT {dims}, {sums} FROM {client.database}.stream_hours FINAL WHERE time = toDateTime({{hour:UInt32}}, 'UTC')"
        f" GROUP BY {', '.join(f'{d}_' for d in move_tables.DIMENSIONS)}",
        {"hour": hour_ms // 1000},
    )
    names = {f"{n}_": n for n in (*move_tables.DIMENSIONS, *BILLED)}
    table = pl.DataFrame(pl.from_arrow(reply)).rename(names)
    return table.with_columns(hour_ms=pl.lit(hour_ms, pl.Int64))


def _published(app: App, client: ClickHouse, day: dt.date, master: str) -> bool:
    """Whether the archives of all regions reproduce the published numbers, byte by byte."""
    from batch import spark_job

    current = publish.current_run(client, day)
    if current is None:
        app.say(f"{day} has not been reconciled: there is nothing published to compare")
        return True
    regions = read_regions(app.settings)
    archives = [region.archive for region in regions]
    files = [file for region in regions for file in region.files_around(day)]
    table = f"audit_{uuid.uuid4().hex[:12]}"
    schema.copy_table(client, "exact_hours", table)
    try:
        with spark_job.open_session(app.settings, master) as spark:
            moves, _ = spark_job.recount_day(
                spark, archives, files, day, coverage.read_rejected_ids(app.settings, day), {}
            )
            spark_job.write_moves(moves, connector(app.settings), current[0], hours=table, ledger=None)
        recomputed = publish.export_digest(client, current[0], table)
    finally:
        schema.drop_table(client, table)
    published, recorded = publish.export_digest(client, current[0]), publish.recorded_digest(client, current[0])
    same = recomputed == published == recorded
    app.table(
        ["exact hours", "SHA-256"],
        [("recomputed", recomputed), ("published", published), ("in the run's record", recorded)],
    )
    app.say(f"{day}: the archive {'reproduces' if same else 'DOES NOT REPRODUCE'} what run {current[0]} published")
    return same
