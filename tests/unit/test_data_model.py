"""`docs/data-model.md` describes the topics, messages, tables and files that the code makes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest

from infra.clickhouse import client as clickhouse
from infra.errors import AdclickError
from infra.kafka import topics
from infra.settings import Settings
from ingest import events, partials, position, published_status
from ingest.archive import schema as archive_schema
from ingest.blocks import BlockHeader, SourceRange
from ingest.counts import Counts
from ingest.dead_letters.sent import Mark
from ingest.dedup.mirror import PartitionMirror, RegistryHead
from ingest.poison import Poison
from ingest.shedding import Level
from ingest.source_partition import SourcePartition
from stream.chunks import ChunkHeader
from stream.hot.layout import SpanField
from tests.unit.fakes import FakeRedis

PAGE = (Path(__file__).parents[2] / "docs" / "data-model.md").read_text()
SQL = [file.read_text() for file in sorted(Path(str(clickhouse.__file__)).parent.glob("*.sql"))]
STATEMENTS = [s for text in SQL for s in re.split(r";\s*\n", re.sub(r"--[^\n]*", "", text))]
_MIB = 1 << 20


def rows_below(header: str) -> list[list[str]]:
    """Cells of each row of the page's table whose first cell in the head is `header`."""
    (table,) = re.findall(rf"^\| {re.escape(header)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.M)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]


def names_below(header: str) -> list[str]:
    """The first cells, without backticks."""
    return [cells[0].strip("`") for cells in rows_below(header)]


def section(heading: str) -> str:
    """The page's text below a heading, up to the next one."""
    (text,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGE, re.M | re.S)
    return str(text)


# -- Kafka -------------------------------------------------------------------------------------------------------------


def test_topics_have_the_documented_partitions_retention_and_size() -> None:
    topics_wanted = topics.wanted(Settings.model_validate({}))
    assert [row[:4] for row in _first_table("Topics")] == [
        _described(topic) for topic in wanted_in_page_order(topics_wanted)
    ]
    assert {t.name for t in topics_wanted} == {row[0].strip("`") for row in _first_table("Topics")}


def wanted_in_page_order(unordered: list[topics.Topic]) -> list[topics.Topic]:
    order = [row[0].strip("`") for row in _first_table("Topics")]
    return sorted(unordered, key=lambda topic: order.index(topic.name))


def _first_table(heading: str) -> list[list[str]]:
    table = re.search(r"^\|[-|]+\n((?:\|.*\n)+)", section(heading), re.M)
    assert table is not None
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[1].splitlines()]


def _described(topic: topics.Topic) -> list[str]:
    config = topic.config
    if config["cleanup.policy"] == "compact":
        retention = "compacted"
    else:
        retention = (
            "for ever" if config["retention.ms"] == "-1" else f"{int(config['retention.ms']) // 86_400_000} days"
        )
    size = f"{int(config['max.message.bytes']) // _MIB} MiB" if "max.message.bytes" in config else "Kafka's default"
    return [f"`{topic.name}`", str(topic.partitions), retention, size]


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("field", events.FIELDS),
        ("field of `Mark`", Mark.__struct_fields__),
        ("field of `BlockHeader`", BlockHeader.__struct_fields__),
        ("field of `SourceRange`", SourceRange.__struct_fields__),
        ("column of a partial", (*partials.KEYS, *partials.SUMS)),
        ("field of `ChunkHeader`", ChunkHeader.__struct_fields__),
        ("field of `_Metadata`", position._Metadata.__struct_fields__),
        ("field of the span", [v.decode() for n, v in vars(SpanField).items() if n.isupper()]),
    ],
)
def test_messages_have_the_documented_fields(header: str, names: Iterable[str]) -> None:
    assert sorted(names_below(header)) == sorted(names)


def test_dead_letters_have_the_documented_reasons() -> None:
    (reasons,) = [cells[1] for cells in rows_below("header") if cells[0] == "`reason`"]
    assert re.findall(r"`([a-z-]+)`", reasons) == [reason.value for reason in events.Reason]


# -- Redis -------------------------------------------------------------------------------------------------------------


def test_reports_of_ingest_workers_have_the_documented_fields() -> None:
    redis = FakeRedis()
    partition = SourcePartition(0, position.Position(1), PartitionMirror(0, RegistryHead(0)), 0.0, 0)
    partition.watch_transaction(1, 2, 0.0)
    partition.poison = Poison(0, 1, 1, "ValueError", b"")
    published_status.publish_report(
        redis,
        "adclick:",
        "a",
        level=Level.NORMAL,
        lag=0,
        counts=Counts(),
        started_ms=0,
        sent_ms=0,
        at_ms=0,
        partitions={0: partition.report(2, 0.0)},
    )
    published_status.publish_stop(redis, "adclick:", "b", AdclickError("Kafka: it is away"))
    running, stopped = (json.loads(redis.call("GET", f"adclick:ingest:{worker}")) for worker in "ab")
    assert names_below("field of a report") == list(running | stopped)
    assert names_below("field of `counts` in a report") == list(running["counts"])
    assert names_below("field of a partition in a report") == list(running["partitions"]["0"])


# -- ClickHouse --------------------------------------------------------------------------------------------------------


def columns_of(table: str) -> list[tuple[str, str]]:
    """Name and type of each column after all migrations."""
    (created,) = [s for s in STATEMENTS if re.search(rf"CREATE TABLE IF NOT EXISTS \{{database\}}\.{table} ", s)]
    body = created.split("(", 1)[1].rsplit(") ENGINE", 1)[0]
    columns = [_name_and_type(part) for part in re.split(r",(?![^()]*(?:\([^()]*\)[^()]*)*\))", body)]
    for statement in STATEMENTS:
        if re.search(rf"ALTER TABLE \{{database\}}\.{table}\b", statement):
            added = re.findall(r"ADD COLUMN IF NOT EXISTS (\w+ [^,\n]+)", statement)
            columns += [_name_and_type(part) for part in added]
    return columns


def _name_and_type(text: str) -> tuple[str, str]:
    name, kind = text.strip().split(" ", 1)
    return name, re.split(" DEFAULT | CODEC", kind)[0].strip()


TABLES = sorted({name for s in STATEMENTS for name in re.findall(r"CREATE TABLE IF NOT EXISTS \{database\}\.(\w+)", s)})


@pytest.mark.parametrize("table", TABLES)
def test_tables_have_the_documented_columns(table: str) -> None:
    assert [(c[0].strip("`"), c[1]) for c in _first_table(f"Table `{table}`")] == columns_of(table)


def test_the_page_lists_each_table_with_its_engine() -> None:
    listed = {cells[0].strip("`"): cells[1] for cells in rows_below("table")}
    assert sorted(listed) == TABLES
    for table, engine in listed.items():
        (created,) = [s for s in STATEMENTS if re.search(rf"CREATE TABLE IF NOT EXISTS \{{database\}}\.{table} ", s)]
        assert re.search(rf"ENGINE = {re.escape(engine.split(',')[0])}\s", created), table
        assert ("`tiered`" in engine) == ("storage_policy = 'tiered'" in created), table


def test_tables_have_the_documented_sorting_key() -> None:
    one = "|".join(name.removesuffix("_id") for name in partials.KEYS if name not in (partials.WINDOW, "campaign_id"))
    for table, order in {cells[0].strip("`"): cells[3] for cells in rows_below("table")}.items():
        keys = [
            key
            for s in STATEMENTS
            if re.search(rf"(TABLE IF NOT EXISTS|ALTER TABLE) \{{database\}}\.{table}\b", s)
            for key in re.findall(r"ORDER BY (\w+|\([\w, ]+\))", s)
        ]
        names = ", ".join(name.removesuffix("_id") for name in re.findall(r"\w+", keys[-1]))
        assert order == re.sub(rf"\b(?:{one})(?:, (?:{one}))+\b", "other dimensions", names), table


def test_tables_have_the_documented_retention() -> None:
    for table, row in {cells[0].strip("`"): cells[4] for cells in rows_below("table")}.items():
        ttls = [
            s
            for s in STATEMENTS
            if re.search(rf"(TABLE IF NOT EXISTS|ALTER TABLE) \{{database\}}\.{table}\b.*TTL", s, re.S)
        ]
        days = {
            ("slow" if volume else "gone"): int(number)
            for number, volume in re.findall(r"INTERVAL (\d+) DAY( TO VOLUME)?", ttls[-1] if ttls else "")
        }
        assert set(map(int, re.findall(r"\d+", row))) == set(days.values()), table
        assert (row == "never") == (not days), table


# -- files -------------------------------------------------------------------------------------------------------------


def test_archive_files_have_the_documented_columns() -> None:
    stored = archive_schema.stored_rows(archive_schema.SCHEMA.empty_table(), 0).schema
    table = [(cells[0].strip("`"), cells[1]) for cells in _first_table("The archive")]
    assert table == [(field.name, _type_name(field.type)) for field in stored]


def _type_name(kind: pa.DataType) -> str:
    return "dictionary of string" if pa.types.is_dictionary(kind) else str(kind)


def test_decisions_are_the_documented_ones() -> None:
    (decision,) = [cells[2] for cells in _first_table("The archive") if cells[0] == "`decision`"]
    assert re.findall(r"`([a-z-]+)`", decision) == list(archive_schema.DECISIONS)
