"""`adclick rebuild` on the real stores: killed half-way, over days that are not whole, over a backup, and beside running workers."""

from __future__ import annotations

import datetime as dt
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from batch import archived_rows, coverage, publish, spark_job
from batch.rebuild.days import DayRebuild
from batch.rebuild.former_archive import FormerArchive
from batch.recount import UnbilledEvents
from infra.cli.app import App
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, iso, now_ms
from infra.errors import UserError
from infra.file_store import FileStore
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.event_producer import EventProducer
from infra.kafka.records import Record
from infra.kafka.transactions import TransactionalProducer
from infra.redis.client import Redis
from infra.settings import Settings
from ingest.archive import schema as archive_schema
from ingest.archive import worker as archive_worker
from ingest.archive.progress import metadata_of
from ingest.archive.schema import Decision
from ingest.dedup import registry
from ingest.dedup.registry import Registry
from stream.hot.published_status import read_shards
from tests import borders
from tests.conftest import adclick
from tests.flow import environment, flow
from tests.integration.test_ingest_worker import archived_decisions, counted
from tests.integration.test_reconcile import _ROW as ROW
from tests.product import COUNTS, wait_until
from tests.redis_loss import lose_keys

TODAY = now_ms() // DAY_MS * DAY_MS
DAYS = [TODAY - n * DAY_MS for n in (5, 4, 3, 2, 1)]
DATES = [iso(day_ms)[:10] for day_ms in DAYS]
LATE = iso(TODAY - 9 * DAY_MS)[:10]
"""A day of which there is but one event, that came today."""


class SettledApp(App):
    """A quiet command's context, with these settings."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(None, False, False, True)
        self._settings = settings

    @property
    def settings(self) -> Settings:
        return self._settings


def archive_days(settings: Settings) -> dict[str, int]:
    """Archive some clicks of each day, one of them twice; returns day → clicks that count."""
    offset, truth = 0, {}
    for number, day_ms in enumerate(DAYS):
        names = [f"{number}-{n}" for n in range(3 + number)]
        rows = [
            ROW
            | {"event_id": name, "offset": offset + n, "log_time_ms": day_ms + HOUR_MS, "time_ms": day_ms + n * HOUR_MS}
            for n, name in enumerate([*names, names[0]])
        ]
        wire = pa.Table.from_pylist(rows, schema=archive_schema.SCHEMA)
        archive_worker.write_files(FileStore(settings.archive), 0, offset, offset + len(rows), wire)
        offset += len(rows)
        truth[DATES[number]] = len(names)
    late = {"event_id": "late", "offset": offset, "time_ms": TODAY - 9 * DAY_MS, "log_time_ms": now_ms()}
    wire = pa.Table.from_pylist([ROW | late | {"decision": Decision.TOO_LATE}], schema=archive_schema.SCHEMA)
    archive_worker.write_files(FileStore(settings.archive), 0, offset, offset + 1, wire)
    return truth | {LATE: 1}


def close_hours(settings: Settings) -> ClickHouse:
    """All days before today have ended by the watermark."""
    client = ClickHouse.of(settings)
    for tier in ("hours", "days"):
        borders.publish(client, tier, range(settings.block_partitions), TODAY)
    return client


def exact_clicks(client: ClickHouse) -> dict[str, int]:
    """Day → clicks of its current run, by hours."""
    db = client.database
    rows = client.rows(
        f"SELECT toString(date), sum(clicks) FROM {db}.exact_hours AS h FINAL INNER JOIN {db}.current_runs AS r"
        " ON h.run_id = r.run_id GROUP BY date"
    )
    return {date: int(clicks) for date, clicks in rows}


def write_log(settings: Settings, archived: int, day_ms: int) -> None:
    """ad-events has the messages that are archived, and one of a day that no file has, though the archive worker has passed it."""
    producer = TransactionalProducer(settings.kafka_connection, f"{settings.namespace}events")
    producer.open()
    value = json.dumps({"event_id": "lost", "event_time": day_ms + HOUR_MS, "event_type": "click"}).encode()
    topic = settings.topic(topics.EVENTS)
    producer.write([*[Record(topic, b"{}", None, 0)] * archived, Record(topic, value, None, 1)])
    consumer = Consumer({"bootstrap.servers": settings.kafka, "group.id": settings.topic(topics.ARCHIVE_GROUP)})
    topic = settings.topic(topics.ARCHIVE)
    positions = [TopicPartition(topic, p, 0, metadata_of(1_000)) for p in range(settings.event_partitions)]
    consumer.commit(offsets=positions, asynchronous=False)
    consumer.close()


def test_a_rebuild_that_is_killed_goes_on_with_the_next_day_and_names_the_days_that_are_not_whole(
    settings: Settings,
) -> None:
    truth, env = archive_days(settings), environment(settings)
    write_log(settings, sum(truth.values()) + len(DAYS), DAYS[4])
    client = close_hours(settings)
    # Its tables are lost but for one, of which no one has the rows.
    for table in ("exact_days", "exact_users", "ledger"):
        client.command(f"DROP TABLE {settings.database}.{table} SYNC")
    planned = adclick("rebuild", "clickhouse", "--dry-run", "--json", cwd=None, **env)
    assert json.loads(planned.stdout)["make"] == ["exact_days", "ledger", "exact_users"], planned.stderr
    killed = adclick("rebuild", "clickhouse", cwd=None, **env, ADCLICK_FAULT="kill@rebuild.day")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert exact_clicks(client) == {LATE: 1}
    Redis(settings.redis).call("DEL", f"{settings.key_prefix}reconcile")  # its lease would last half a minute
    again = adclick("rebuild", "clickhouse", "--json", cwd=None, **env)
    outcomes = {day["date"]: day["outcome"] for day in json.loads(again.stdout)["days"]}
    expected = ("stored", "published", "published", "published", "refused", "refused")
    assert outcomes == dict(zip((LATE, *DATES), expected, strict=True))
    assert again.returncode == 1
    assert "2 of 6 days were not rebuilt" in again.stderr and "neither archived nor dead letters" in again.stderr
    assert exact_clicks(client) == {date: truth[date] for date in (LATE, *DATES[:3])}
    runs = client.rows(f"SELECT count() FROM {settings.database}.runs")
    # Of days that are there nothing is done, and Spark is not started.
    third = adclick("rebuild", "clickhouse", "--to", DATES[2], cwd=None, **env)
    assert (third.returncode, client.rows(f"SELECT count() FROM {settings.database}.runs")) == (0, runs), third.stderr


def published(client: ClickHouse, day_ms: int, ends: list[int], clicks: int, open_from_ms: int = 0) -> str:
    """A run of a day, with one row; of its hours before `open_from_ms` where the day was open."""
    run_id, date = f"run-{day_ms}", dt.date.fromisoformat(iso(day_ms)[:10])
    place = "1, 3, 2, 4, 'DE', 'mobile'"
    for table, at_ms in (("exact_hours", day_ms + HOUR_MS), ("exact_days", day_ms)):
        client.command(
            f"INSERT INTO {client.database}.{table} SELECT toDateTime({at_ms // 1000}, 'UTC'), {place}, '{run_id}', 0, {clicks},"
            f" 0, {7 * clicks}, 0, 0, 0"
        )
    proof = coverage.Proof([], [], [], archived_rows.NO_REJECTED_IDS, ends)
    publish.publish(
        client, date, run_id, 1, spark_job.RunInput(clicks, 0, "digest", UnbilledEvents(), 1, {}), publish.Comparison(1, 0, 0), proof, 0.0, False,
        open_from_ms, tables=publish.exact_tables(client),
    )  # fmt: skip
    return run_id


def test_runs_that_come_back_with_a_backup_stay_what_they_were_and_what_changed_since_is_recounted(
    settings: Settings,
) -> None:
    truth, client, db = archive_days(settings), close_hours(settings), settings.database
    # As published; restated since the backup; with rows that are not what was published; of a part of its day; and a day without a run.
    kept, restated = published(client, DAYS[0], [1000, 0], truth[DATES[0]]), published(client, DAYS[1], [0, 0], 1)
    damaged = published(client, DAYS[2], [1000, 0], 9)
    part = published(client, DAYS[3], [1000, 0], 2, open_from_ms=DAYS[3] + 3 * HOUR_MS)
    client.command(f"INSERT INTO {db}.exact_hours SELECT time, 77, 3, 2, 4, country, device, run_id, 0, 1, 0, 7, 0, 0, 0 FROM {db}.exact_hours WHERE run_id = '{damaged}'")  # fmt: skip
    before = client.rows(f"SELECT run_id, published_at FROM {db}.runs ORDER BY date")
    client.command(f"BACKUP DATABASE {db} TO Disk('backups', '{db}')")
    client.command(f"DROP DATABASE {db} SYNC")
    client.command(f"RESTORE DATABASE {db} FROM Disk('backups', '{db}')")
    close_hours(settings)
    tables = publish.exact_tables(client)
    assert not publish.is_stored(client, kept, tables), "a restored table has another UUID"
    app = SettledApp(settings)
    rebuild = DayRebuild(app, client, None, None)
    plan = rebuild.plan(rebuild.read_watermark())
    assert len(plan.void) == 4
    # The recount itself is the nightly run's, which has tests of its own: here only which days come to it.
    assert rebuild.attach(plan.void) == {kept, restated, part}
    after = DayRebuild(app, client, None, None).plan(rebuild.read_watermark())
    outcomes = {day.date.isoformat(): day.outcome for day in after.days}
    assert outcomes == {LATE: "recount", DATES[0]: "stored"} | dict.fromkeys(DATES[1:], "recount")
    (why,) = [day.why for day in after.days if day.date.isoformat() == DATES[1]]
    assert why == f"{truth[DATES[1]] + 1} events came after run {restated}"
    assert client.rows(f"SELECT run_id, published_at FROM {db}.runs ORDER BY date") == before


# -- Redis -----------------------------------------------------------------------------------------------------------


def test_workers_without_events_rebuild_what_redis_lost_and_count_no_copy(settings: Settings, tmp_path: Path) -> None:
    with flow(settings, tmp_path, events=2_000, late=0, malformed=0, duplicates=0) as work:
        redis, env = Redis(settings.redis), environment(work.settings)
        ids = Registry(redis, settings.key_prefix, ttl_s=60, segment_ids=1_000)
        valid = int(sum(work.events.truth.counts.select(f"stream_{c}" for c in COUNTS).sum().row(0)))
        work.start("ingest-0")
        work.start("stream-0")
        work.send()
        wait_until(lambda: len(archived_decisions(settings)) == valid, 40, "all events are ingested")
        work.wait_until_something_is_shown()
        whole = adclick("rebuild", "redis", "--json", cwd=None, **env)
        assert whole.returncode == 0 and "nothing to do" in whole.stderr, whole.stderr
        lose_keys(redis, registry.all_keys(settings.key_prefix))
        lose_keys(redis, f"{settings.key_prefix}hot:*")
        dry = adclick("rebuild", "redis", "--dry-run", "--json", cwd=None, **env)
        todo = json.loads(dry.stdout)
        assert sum(p["messages"] for p in todo["partitions"]) == 2_000, dry.stderr
        rebuilt = adclick("rebuild", "redis", "--json", cwd=None, **env)
        assert rebuilt.returncode == 0, rebuilt.stderr
        document = json.loads(rebuilt.stdout)
        assert document["rebuilt"]["partitions"] == [0, 1]
        assert {p["outcome"] for p in document["partitions"]} == {"whole"}
        assert not [s for s in read_shards(redis, settings.key_prefix, settings.block_partitions) if s.sequence is None]
        # All of them once more: each is a copy.
        producer = EventProducer(settings.kafka_connection)
        producer.send(
            settings.topic(topics.EVENTS), [k.encode() for k in work.events.keys], work.events.lines.to_list()
        )
        assert producer.flush(30) == 0
        wait_until(lambda: len(archived_decisions(settings)) == 2 * valid, 40, "the copies are ingested")
        assert len(counted(archived_decisions(settings))) == valid
        # Without the messages there is nothing to rebuild from, and nothing is begun.
        ends = Admin(settings.kafka_connection).ends(settings.topic(topics.EVENTS), settings.event_partitions)
        gone = [TopicPartition(settings.topic(topics.EVENTS), p, end) for p, end in enumerate(ends)]
        kafka = AdminClient({"bootstrap.servers": settings.kafka})
        for future in kafka.delete_records(gone).values():
            future.result()
        lose_keys(redis, registry.all_keys(settings.key_prefix))
        refused = adclick("rebuild", "redis", cwd=None, **env)
        assert (refused.returncode, "ids of partition 0, 1 are lost for good" in refused.stderr) == (1, True), (
            refused.stderr
        )
        assert [ids.recorded_up_to(p) for p in (0, 1)] == [None, None]


# -- a new installation ----------------------------------------------------------------------------------------------


def test_the_former_installation_and_one_that_has_the_events_are_refused(
    new_settings: Callable[[], Settings],
) -> None:
    former, other = new_settings(), new_settings()
    archive_days(former)
    client, redis = ClickHouse.of(other), Redis(other.redis)

    def refusal(settings: Settings, where: str) -> str:
        with pytest.raises(UserError) as raised:
            FormerArchive(settings, redis, where).refuse_former_installation(ClickHouse.of(settings))
        return str(raised.value)

    assert "own archive" in refusal(former, f"{former.archive}/")
    assert "holds no files" in refusal(other, f"{other.archive}/nothing")
    FormerArchive(other, redis, former.archive).refuse_former_installation(client)
    # The events, sent again: they lie where they arrived, as other messages.
    row = ROW | {"event_id": "2-1", "offset": 7, "log_time_ms": now_ms(), "decision": Decision.TOO_LATE}
    wire = pa.Table.from_pylist([row], schema=archive_schema.SCHEMA)
    archive_worker.write_files(FileStore(other.archive), 1, 7, 8, wire)
    assert "has events of" in refusal(other, former.archive) and "such as 2-1" in refusal(other, former.archive)
    run_id = published(client, DAYS[1], [0, 0], 1)
    assert f"has run {run_id}" in refusal(other, former.archive)
