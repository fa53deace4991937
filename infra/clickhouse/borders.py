"""What the stored tiers vouch for: how far each shard has written hours and days, and which runs are published.

A border, and a run, is about the rows of one table, and names it by its UUID. A table that was dropped and made again has another
one, so what was published for the former says nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, iso

TABLES = {"hours": "stream_hours", "days": "stream_days"}
"""Where the rows of a tier are."""


@dataclass(frozen=True)
class Border:
    """What all shards have of a tier: windows in [from_ms, border_ms), which no event can change any more, and those that end at or
    before watermark_ms, which late events may still change. Epoch ms. `table_id`: the table's UUID. `canary_ms`, `newest_canary_ms`: when
    the oldest and the newest of the last canaries of all source partitions were sent; 0 for none."""

    border_ms: int
    watermark_ms: int
    from_ms: int
    table_id: str
    canary_ms: int = 0
    newest_canary_ms: int = 0


@dataclass(frozen=True)
class Run:
    """The current run of a day that begins at `day_ms`; from `open_from_ms` on the stream answers, if that is not 0."""

    run_id: str
    day_ms: int
    open_from_ms: int


@dataclass(frozen=True)
class Published:
    """`tiers`: those of which every shard has published a border. `void`: those whose table was made again since a shard has
    published its border. `void_runs`: those whose tables were made again since."""

    tiers: dict[str, Border] = field(default_factory=dict)
    void: tuple[str, ...] = ()
    runs: tuple[Run, ...] = ()
    void_runs: tuple[Run, ...] = ()


def read_published(client: ClickHouse, shards: int) -> Published:
    """Borders and current runs, of one moment. Raises Unavailable."""
    db = client.database
    rows = client.rows(
        f"""WITH (
                {ids_query(client, ("stream_hours", "stream_days", "exact_hours", "exact_days"))}
            ) AS ids
            SELECT 'tier', tier, toUInt64(count()), toUInt64(countIf(valid)), min(border), min(watermark), max(since), toString(any(id)),
                minIf(canary, canary > 0), max(newest_canary)
            FROM (
                SELECT toString(tier) AS tier, shard, ids[concat('stream_', tier)] AS id, countIf(table_id = id) > 0 AS valid,
                    maxIf(border_ms, table_id = id) AS border, maxIf(watermark_ms, table_id = id) AS watermark,
                    maxIf(from_ms, table_id = id) AS since, max(canary_ms) AS canary, max(newest_canary_ms) AS newest_canary
                FROM {db}.tier_borders WHERE shard < {{shards:UInt16}} GROUP BY tier, shard) GROUP BY tier
            UNION ALL
            SELECT 'run', run_id, toUInt64(1), toUInt64(hours_id = ids['exact_hours'] AND days_id = ids['exact_days']),
                toUInt64(toUnixTimestamp(toDateTime(date, 'UTC'))), open_from_ms, toUInt64(0), '', toUInt64(0), toUInt64(0) FROM {db}.current_runs""",
        {"shards": shards},
    )
    borders, void, runs, void_runs = dict[str, Border](), list[str](), list[Run](), list[Run]()
    for kind, name, count, valid, first, second, since, table_id, canary, newest_canary in rows:
        if kind == "run":
            (runs if valid else void_runs).append(Run(name, int(first) * 1000, int(second)))
        elif valid < count:
            void.append(name)
        elif count == shards:
            borders[name] = Border(int(first), int(second), int(since), table_id, int(canary), int(newest_canary))
    return Published(borders, tuple(sorted(void)), tuple(runs), tuple(void_runs))


def table_id(client: ClickHouse, table: str) -> str:
    """The UUID of a table; empty where there is none. Raises Unavailable."""
    return table_ids(client, (table,)).get(table, "")


def table_ids(client: ClickHouse, tables: Sequence[str]) -> dict[str, str]:
    """Table or view → its UUID; without those that are not there. Raises Unavailable."""
    ((ids,),) = client.rows(ids_query(client, tables))
    return {name: str(id_) for name, id_ in ids.items()}


def ids_query(client: ClickHouse, tables: Sequence[str]) -> str:
    """A query of one value: table → its UUID, of the table that has its rows; without those that are not there."""
    stored = {client.deployment.stored(table): table for table in tables}
    name = f"transform(name, {list(stored)}, {list(stored.values())}, '')"
    return (
        f"SELECT CAST((groupArray({name}), groupArray(uuid)), 'Map(String, UUID)') FROM system.tables"
        f" WHERE database = '{client.database}' AND name IN {list(stored)}"
    )


def read_border(client: ClickHouse, tier: str, shard: int) -> Border | None:
    """What a shard published last, for whichever table; None when it has published nothing. Raises Unavailable."""
    rows = client.rows(
        f"SELECT border_ms, watermark_ms, from_ms, toString(table_id) FROM {client.database}.tier_borders FINAL"
        " WHERE tier = {tier:String} AND shard = {shard:UInt16}",
        {"tier": tier, "shard": shard},
    )
    return Border(*rows[0]) if rows else None


def publish_borders(client: ClickHouse, tier: str, of_shards: Iterable[tuple[int, Border]]) -> None:
    """Publish how far shards have written a tier, in one statement. Of two of one shard the one with the later watermark stays, of
    equal ones the last. Raises Unavailable."""
    rows = ", ".join(
        f"({{tier:String}}, {shard}, {b.border_ms}, {b.watermark_ms}, {b.from_ms}, '{UUID(b.table_id)}', {b.canary_ms}, {b.newest_canary_ms})"
        for shard, b in of_shards
    )
    client.command(
        f"INSERT INTO {client.database}.tier_borders"
        f" (tier, shard, border_ms, watermark_ms, from_ms, table_id, canary_ms, newest_canary_ms) VALUES {rows}",
        {"tier": tier},
    )


def gaps(published: Published) -> list[str]:
    """What is missing since a table was made again, and what brings it back: one sentence for each table."""
    sentences = [
        f"ClickHouse's table {TABLES[tier]} was made again: until the stream workers have filled it, its {tier} are not served"
        for tier in published.void
    ]
    days = sorted(run.day_ms for run in published.runs)
    for tier, border in published.tiers.items():
        if not border.from_ms:
            continue
        unreconciled = set(range(days[0], border.from_ms, DAY_MS)) - set(days) if days else {border.from_ms - 1}
        if unreconciled:
            sentences.append(
                f"ClickHouse's table {TABLES[tier]} was made again: {tier} before {iso(border.from_ms)} are missing; "
                f"adclick reconcile brings them back, for each day that is archived (--from {iso(min(unreconciled))[:10]}"
                f" --to {iso(max(unreconciled))[:10]})"
            )
    if published.void_runs:
        lost = sorted(run.day_ms for run in published.void_runs)
        sentences.append(
            f"ClickHouse's exact tables were made again: {len(lost)} reconciled days are shown as the stream has them; "
            f"adclick reconcile --from {iso(lost[0])[:10]} --to {iso(lost[-1])[:10]} brings them back"
        )
    return sentences
