"""A cluster of ClickHouse: where rows are, what a copy of a table is, and what happens when a node is killed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from infra.clickhouse import borders, schema
from infra.clickhouse.client import ClickHouse
from infra.clickhouse.deployment import SHARDED
from infra.clickhouse.schema import apply_migrations, missing_tables, pending
from infra.clock import HOUR_MS
from infra.errors import Refused, Unavailable, UserError
from infra.settings import Settings
from ingest.blocks import BlockHeader, SourceRange
from stream.published import Publication
from stream.warm.tables import WarmTables
from stream.warm.writer import WarmSink, lowest_border
from tests.clusters.clickhouse_cluster import ClickHouseCluster, DdlEverywhere, own_settings
from tests.stages import Stage
from tests.unit.test_partials_and_cells import frame, partial

START = 1_795_132_800_000
CAMPAIGNS = range(1, 41)


TABLES = ("stream_hours", "closed_cells", "tier_borders", "stream_reach_hours", "stream_reach_days", "exact_hours")


@pytest.fixture
def new_client(empty_settings: Settings, ddl: DdlEverywhere) -> ClickHouse:
    """Of a migrated database of the test's own, by the first node."""
    client = ClickHouse.of(empty_settings)
    apply_migrations(client)
    return client


@pytest.fixture(scope="module")
def shared_client(cluster: ClickHouseCluster) -> ClickHouse:
    """Of a database that is migrated once."""
    client = ClickHouse.of(Settings.model_validate(own_settings(cluster)))
    with DdlEverywhere(cluster.clients).installed():
        apply_migrations(client)
    return client


@pytest.fixture
def client(shared_client: ClickHouse, cluster: ClickHouseCluster, ddl: DdlEverywhere) -> ClickHouse:
    """Of that database, with empty tables."""
    for node in cluster.clients(shared_client.database):
        for table in TABLES:
            node.command(f"TRUNCATE TABLE {node.database}.{table}_local")
    return shared_client


class Owner:
    """The owner of the only shard of hours of the stream."""

    def __init__(self, client: ClickHouse) -> None:
        self.client, self.stage = client, Stage(HOUR_MS, 1)
        self.sink = WarmSink(WarmTables(client, look_every_s=0.0), "hours", HOUR_MS, 0)

    def flush(self, impressions: int, watermark_ms: int, window_ms: int = START) -> Publication:
        """Of each campaign one row of an hour."""
        at = self.stage.next_message
        rows = [partial(window_ms=window_ms, campaign_id=campaign, impressions=impressions) for campaign in CAMPAIGNS]
        header = BlockHeader(1, (SourceRange(0, at, at + 1, watermark_ms, False),), 0)
        self.stage.apply_block(at, frame(rows), header, "here")
        self.stage.begin_flush()
        return self.stage.commit()

    def show(self, published: Publication) -> None:
        """As a stage partition does."""
        if not self.sink.write(published):
            self.sink.attach(self.stage.state.snapshot())


def impressions(client: ClickHouse, table: str = "stream_hours") -> dict[int, int]:
    """By campaign."""
    sql = f"SELECT campaign_id, sum(impressions) FROM {client.database}.{table} FINAL GROUP BY campaign_id"
    return {int(campaign): int(count) for campaign, count in client.rows(sql)}


def of_all(count: int) -> dict[int, int]:
    return dict.fromkeys(CAMPAIGNS, count)


def test_migrations_reach_every_node_and_repeating_them_changes_nothing(
    new_client: ClickHouse, cluster: ClickHouseCluster, ddl: DdlEverywhere
) -> None:
    client = new_client
    assert (pending(client), missing_tables(client), apply_migrations(client)) == ([], [], [])
    # A view that is replaced gets another UUID, which nothing asks for.
    sql = (
        "SELECT name, toString(uuid), engine FROM system.tables WHERE database = {db:String} AND engine != 'View'"
        " ORDER BY name"
    )
    first, *others = [node.rows(sql, {"db": client.database}) for node in cluster.clients(client.database)]
    assert len(others) == 3
    assert all(tables == first for tables in others)
    engines = {name: engine for name, _, engine in first}
    assert {engines[f"{table}"] for table in SHARDED} == {"Distributed"}
    assert {engine for name, engine in engines.items() if name.endswith("_local")} == {
        "MergeTree", "ReplacingMergeTree", "AggregatingMergeTree",
    }  # fmt: skip
    assert all(f"{name}_local" in engines for name, engine in engines.items() if engine == "Distributed")
    # What a border is about is the table that has the rows.
    ids = {name: id_ for name, id_, _ in first}
    assert borders.table_id(client, "stream_hours") == ids["stream_hours_local"]


def test_the_replicated_statements_are_sql(new_client: ClickHouse, ddl: DdlEverywhere) -> None:
    """The engine can make no replicated table without a Keeper; it can parse each statement."""
    client = new_client
    made = [sql for sql in ddl.statements if re.search(r"ENGINE = Replicated\w*MergeTree", sql)]
    assert len(made) == len(re.findall(r"CREATE TABLE IF NOT EXISTS", "".join(schema.all_statements())))
    for sql in ddl.statements:
        # As the engine has understood it.
        ((parsed,),) = client.rows("SELECT formatQuerySingleLine({sql:String})", {"sql": sql})
        assert re.search(r"^(CREATE|ALTER) .* ON CLUSTER blue\b", parsed), parsed
        assert re.findall(r"ENGINE = (\w+)", parsed) == re.findall(r"ENGINE = (\w+)", sql)


def test_a_table_that_lost_its_rows_is_made_again_and_its_borders_are_void(client: ClickHouse) -> None:
    owner = Owner(client)
    owner.show(owner.flush(1, START + HOUR_MS))
    assert borders.read_published(client, 1).tiers.keys() == {"hours"}
    schema.drop_table(client, "stream_hours")
    assert missing_tables(client) == ["stream_hours"]
    assert apply_migrations(client) == ["stream_hours"]
    assert borders.read_published(client, 1).void == ("hours",)
    owner.show(owner.flush(1, START + HOUR_MS))
    assert impressions(client) == of_all(2)
    assert borders.read_published(client, 1).tiers.keys() == {"hours"}


def test_a_campaign_is_on_one_shard_and_each_of_its_replicas_has_all(
    client: ClickHouse, cluster: ClickHouseCluster
) -> None:
    owner = Owner(client)
    owner.show(owner.flush(1, START + HOUR_MS))
    for expected in (3, 5):
        owner.show(owner.flush(2, START + HOUR_MS))
        assert impressions(client) == of_all(expected)
    first, first_again, second, second_again = (
        impressions(node, "stream_hours_local") for node in cluster.clients(client.database)
    )
    assert first == first_again
    assert second == second_again
    assert not first.keys() & second.keys()
    assert first | second == of_all(5)
    assert min(len(first), len(second)) >= len(CAMPAIGNS) // 4
    # Tables that are read as a whole are on the first shard.
    counts = [
        node.rows(f"SELECT count() FROM {client.database}.tier_borders_local FINAL")[0][0]
        for node in cluster.clients(client.database)
    ]
    assert counts == [1, 1, 0, 0]


def test_users_of_a_days_hours_are_on_the_shard_of_the_campaign(client: ClickHouse, cluster: ClickHouseCluster) -> None:
    values = ", ".join(
        f"({(START + hour * HOUR_MS) // 1000}, {campaign}, 1, [{campaign}, {hour + 100}])"
        for campaign in CAMPAIGNS
        for hour in range(3)
    )
    client.command(f"INSERT INTO {client.database}.stream_reach_hours VALUES {values}")
    sql = "SELECT campaign_id, arraySort(groupUniqArrayArray(coupons)) FROM {db}.stream_reach_days{part} GROUP BY campaign_id"
    days = dict(client.rows(sql.format(db=client.database, part="")))
    assert days == {campaign: sorted({campaign, 100, 101, 102}) for campaign in CAMPAIGNS}
    by_node = [
        {c for c, _ in node.rows(sql.format(db=client.database, part="_local"))}
        for node in cluster.clients(client.database)
    ]
    assert by_node[0] == by_node[1]
    assert by_node[2] == by_node[3]
    assert not by_node[0] & by_node[2]


def test_a_copy_of_a_table_has_rows_of_its_own(client: ClickHouse) -> None:
    dimensions = "time, campaign_id, run_id, impressions"
    for table, count in (("exact_hours", 3), ("audit_1", 4)):
        if table != "exact_hours":
            schema.copy_table(client, "exact_hours", table)
        client.command(
            f"INSERT INTO {client.database}.{table} ({dimensions}) SELECT toDateTime({START // 1000}), number + 1, 'a', {count}"
            f" FROM numbers({len(CAMPAIGNS)})"
        )
    assert (impressions(client, "exact_hours"), impressions(client, "audit_1")) == (of_all(3), of_all(4))
    schema.drop_table(client, "audit_1")
    assert impressions(client, "exact_hours") == of_all(3)
    with pytest.raises(Unavailable, match="audit_1"):
        impressions(client, "audit_1")


def test_while_a_replica_is_dead_reads_go_on_and_writes_wait_and_nothing_is_lost_or_doubled(
    client: ClickHouse, cluster: ClickHouseCluster
) -> None:
    owner, killed = Owner(client), cluster.nodes[3]
    owner.show(owner.flush(1, START + HOUR_MS))
    border = lowest_border(client, "hours", 1)
    assert border is not None
    killed.kill()
    try:
        assert impressions(client) == of_all(1)
        waiting = owner.flush(2, START + 2 * HOUR_MS, START + HOUR_MS)
        for _ in range(2):
            with pytest.raises(Unavailable):
                owner.show(waiting)
        # Rows may have reached the nodes that are there; the border promises nothing of them.
        assert lowest_border(client, "hours", 1) == border
        assert set(impressions(client).values()) <= {1, 3}
        assert impressions(client).keys() == set(CAMPAIGNS)
    finally:
        killed.start()
    owner.show(waiting)
    assert impressions(client) == of_all(3)
    assert lowest_border(client, "hours", 1) == border + HOUR_MS
    by_node = [impressions(node, "stream_hours_local") for node in cluster.clients(client.database)]
    assert by_node[0] == by_node[1]
    assert by_node[2] == by_node[3]
    assert by_node[0] | by_node[2] == of_all(3)


def test_a_shard_without_replicas_is_no_answer_rather_than_half_of_one(
    client: ClickHouse, cluster: ClickHouseCluster
) -> None:
    owner = Owner(client)
    owner.show(owner.flush(1, START + 3 * HOUR_MS))
    for node in cluster.nodes[2:]:
        node.kill()
    try:
        with pytest.raises(Unavailable):
            impressions(client)
    finally:
        for node in cluster.nodes[2:]:
            node.spawn()
        for node in cluster.nodes[2:]:
            node.wait()
    assert impressions(client) == of_all(1)


def test_another_number_of_shards_is_refused(client: ClickHouse) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "count_shards", lambda _: 3)
        with pytest.raises(UserError, match=r"cluster blue has 3 shards, and tables were made for 2 .*operating.md"):
            apply_migrations(client)


def test_a_cluster_that_is_not_configured_is_named(empty_settings: Settings) -> None:
    client = ClickHouse.of(empty_settings.model_copy(update={"clickhouse_cluster": "green"}))
    with pytest.raises(Refused, match=r"no cluster named green .*ADCLICK_CLICKHOUSE_CLUSTER"):
        apply_migrations(client)


def test_settings_of_a_cluster_are_those_of_each_statement(client: ClickHouse) -> None:
    wanted: dict[str, Any] = client.deployment.settings()
    sql = "SELECT name, value FROM system.settings WHERE name IN {names:Array(String)}"
    assert dict(client.rows(sql, {"names": list(wanted)})) == wanted
