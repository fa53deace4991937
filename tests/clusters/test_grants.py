"""The product's operations by ClickHouse users who have what `adclick migrate --print-grants` prints, and no more."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from itertools import count

import pyarrow as pa
import pytest

from batch import coverage, publish
from batch.archived_rows import NO_REJECTED_IDS
from batch.recount import UnbilledEvents
from batch.spark_job import RunInput
from infra.clickhouse import borders, schema
from infra.clickhouse.alerts import Alert, insert_alerts, read_newest
from infra.clickhouse.client import ClickHouse
from infra.clickhouse.deployment import ONE_SERVER
from infra.clickhouse.grants import SECRET, grants
from infra.clickhouse.schema import apply_migrations, missing_tables, pending
from infra.clock import DAY_MS, HOUR_MS, now_ms
from infra.doctor import Examination
from infra.errors import Denied
from infra.settings import Settings
from ingest.blocks import BlockHeader, SourceRange
from query.changed_cells import ChangesReader
from query.changes import parse_changes_question
from query.keys import Keys
from query.row_scope import ALL_ROWS
from query.runs import read_current_runs, read_runs
from query.signing import Signer
from stream.warm.tables import WarmTables
from stream.warm.writer import WarmSink
from tests.clusters.clickhouse_cluster import USER, ClickHouseCluster
from tests.stages import Stage
from tests.unit.test_partials_and_cells import frame, partial

DATABASE = "adclick"
START = 1_795_132_800_000 // DAY_MS * DAY_MS
DATE = dt.datetime.fromtimestamp(START / 1000, dt.UTC).date()
FENCES = count(1)
SIGNER = Signer("test")
STATEMENTS = schema.all_statements()
MIGRATOR = grants("migrator", STATEMENTS, DATABASE, ONE_SERVER)
WRITER = grants("writer", STATEMENTS, DATABASE, ONE_SERVER)
READER = grants("reader", STATEMENTS, DATABASE, ONE_SERVER)


def _databases_of_migrators() -> dict[str, list[str]]:
    """For each grant of the migrator a user who lacks it, with a database of the same name."""
    users = {}
    for number, lacking in enumerate(MIGRATOR):
        name = f"{DATABASE}lacks{number}"
        users[name] = [g.replace(f" {DATABASE}.", f" {name}.") for g in MIGRATOR if g != lacking]
    return users


def _writers() -> dict[str, list[str]]:
    return {
        f"writer_lacks{number}": [grant for grant in WRITER if grant != lacking]
        for number, lacking in enumerate(WRITER)
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseCluster]:
    """A server whose database the migrator has made."""
    users = {"migrator": MIGRATOR, "writer": WRITER, "reader": READER} | _databases_of_migrators() | _writers()
    server = ClickHouseCluster(tmp_path_factory.mktemp("server"), 1, 1, users)
    try:
        server.start()
        assert len(apply_migrations(as_user(server, "migrator"))) > 20
        yield server
    finally:
        server.close()


def as_user(server: ClickHouseCluster, user: str, database: str = DATABASE) -> ClickHouse:
    return ClickHouse(server.nodes[0].url(user), database)


def write(client: ClickHouse) -> None:
    """What stream, nightly run and router write, and what they read for it; then what an audit makes and drops."""
    fence = next(FENCES)
    assert (pending(client), missing_tables(client)) == ([], [])
    stage, sink = Stage(HOUR_MS, 1), WarmSink(WarmTables(client, look_every_s=0.0), "hours", HOUR_MS, 0)
    stage.apply_block(
        0, frame([partial(window_ms=START)]), BlockHeader(1, (SourceRange(0, 0, 1, START + DAY_MS, False),), 0), "here"
    )
    stage.begin_flush()
    published = stage.commit()
    if not sink.write(published):
        sink.attach(stage.state.snapshot())
    reach = {"time": pa.array([START // 1000], pa.uint32()), "campaign_id": [1], "coupons": [[1]]}
    client.insert("stream_reach_hours", pa.table(reach))
    publish_run(client, f"run-{fence}", fence)
    insert_alerts(client, [Alert("al_1", 1, "spend-spike", "warning", "open", 1, 1, START, 0, "it grew")])
    keys = Keys(client)
    key, _ = keys.create("one", None, admin=False, rate=1.0, burst=1.0, lasts_ms=None)
    keys.revoke(key.id)
    schema.copy_table(client, "exact_hours", f"audit_{fence}")
    client.rows(f"SELECT count() FROM {client.database}.audit_{fence}")
    schema.drop_table(client, f"audit_{fence}")


def publish_run(client: ClickHouse, run: str, fence: int) -> None:
    """Of one row, as the nightly job does."""
    tables, row = publish.exact_tables(client), {"time": pa.array([START // 1000], pa.uint32()), "campaign_id": [1]}
    client.insert("exact_hours", pa.table(row | {"run_id": [run], "impressions": [5]}))
    comparison = publish.compare(client, DATE, run, 0.001, START + DAY_MS, START // 1000)
    assert comparison.causes
    run_input = RunInput(5, 0, run, UnbilledEvents(), 1, {"impressions": 5})
    proof = coverage.Proof([], [], [], NO_REJECTED_IDS, [])
    publish.publish(client, DATE, run, fence, run_input, comparison, proof, 0.0, False, tables=tables)


def read(client: ClickHouse) -> None:
    """What dashboards of one's own and `adclick status` read: numbers, runs, alerts, changes."""
    assert "hours" in borders.read_published(client, 1).tiers
    assert read_runs(client)
    read_current_runs(client)
    assert (
        Alert("al_1", 1, "spend-spike", "warning", "open", 1, 1, START, 0, "it grew")
        in read_newest(client, "1", {}).values()
    )
    question = parse_changes_question([("since", "-1d"), ("granularity", "hour")], now_ms(), ALL_ROWS, SIGNER)
    ChangesReader(client, 1).answer(question, SIGNER)
    assert client.rows(f"SELECT sum(impressions) FROM {client.database}.stream_hours FINAL")[0][0] > 0


def test_the_writer_can_write_and_read_what_the_product_does(server: ClickHouseCluster) -> None:
    client = as_user(server, "writer")
    write(client)
    read(client)


@pytest.mark.parametrize("number", range(len(WRITER)), ids=WRITER)
def test_the_writer_needs_each_of_its_grants(server: ClickHouseCluster, number: int) -> None:
    with pytest.raises(Denied, match="Not enough privileges"):
        write(as_user(server, f"writer_lacks{number}"))


@pytest.mark.parametrize("number", range(len(MIGRATOR)), ids=MIGRATOR)
def test_the_migrator_needs_each_of_its_grants(server: ClickHouseCluster, number: int) -> None:
    name = f"{DATABASE}lacks{number}"
    with pytest.raises(Denied, match="Not enough privileges"):
        apply_migrations(as_user(server, name, name))
        # Materialized views write as the one who made them.
        anyone = as_user(server, USER, name)
        for table, columns in (("stream_reach_hours", {}), ("exact_reach_hours", {"run_id": ["a"]})):
            anyone.insert(table, pa.table({"campaign_id": [1], "coupons": [[1]]} | columns))


@pytest.mark.parametrize(
    ("process", "user", "lacking"),
    [("", "writer", ()), ("migrate", "migrator", ())]
    + [("", f"writer_lacks{number}", (grant,)) for number, grant in enumerate(WRITER)]
    + [("migrate", f"{DATABASE}lacks{number}", (grant,)) for number, grant in enumerate(MIGRATOR)]
    + [("", "reader", tuple(grant for grant in WRITER if not grant.startswith("SELECT ON system")))],
)
def test_doctor_names_each_grant_that_a_user_lacks(
    server: ClickHouseCluster, process: str, user: str, lacking: Sequence[str]
) -> None:
    # Migrators have databases of their own names.
    database = user if user.startswith(DATABASE) else DATABASE
    values = {"clickhouse": server.nodes[0].url(user), "namespace": database.removeprefix("adclick")}
    settings = Settings.model_validate(values)
    grants_of = [grant.replace(f" {DATABASE}.", f" {settings.database}.") for grant in lacking]
    outcomes = [o for o in Examination(settings, process).outcomes(["clickhouse"]) if o.check == "rights"]
    assert [o.problem for o in outcomes] == ([f"this user lacks {g}: GRANT {g} TO `{user}`" for g in grants_of] or [""])


def test_the_writer_cannot_change_or_drop_tables_of_the_product(server: ClickHouseCluster) -> None:
    client = as_user(server, "writer")
    for statement in ("DROP TABLE {}.runs", "ALTER TABLE {}.runs DELETE WHERE 1", "TRUNCATE TABLE {}.ledger"):
        with pytest.raises(Denied, match="Not enough privileges"):
            client.command(statement.format(DATABASE))


def test_the_reader_reads_numbers_and_neither_secrets_nor_writes(server: ClickHouseCluster) -> None:
    write(as_user(server, "writer"))
    client = as_user(server, "reader")
    read(client)
    for grant in READER:
        client.rows(f"SELECT * FROM {grant.removeprefix('SELECT ON ')} LIMIT 1")
    for table in SECRET:
        with pytest.raises(Denied, match="Not enough privileges"):
            client.rows(f"SELECT * FROM {DATABASE}.{table}")
    with pytest.raises(Denied, match="Not enough privileges"):
        insert_alerts(client, [Alert("al_2", 1, "spend-spike", "warning", "open", 1, 1, START, 0, "it grew")])
