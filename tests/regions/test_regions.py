"""A nightly run over two regions, and a region that follows another one, each region a namespace of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS
from infra.errors import UserError
from infra.file_store import FileStore
from infra.kafka import topic_setup, topics
from infra.kafka.admin import Admin
from infra.kafka.client import make_producer
from infra.settings import Settings
from ingest.archive import schema as archive_schema
from ingest.archive import worker as archive_worker
from ingest.archive.schema import Decision
from ingest.replicated import Copy, read_copy
from tests import borders
from tests.conftest import adclick
from tests.flow import environment
from tests.integration.test_reconcile import _EXACT, _ROW, DAY, DAY_SHOWN, MOVED, plant


def _plant_elsewhere(settings: Settings) -> None:
    """Archived rows of another region: two events of its own, and copies of events of the first one, before and after those."""
    rows: list[dict[str, Any]] = [
        {"event_id": "theirs"},
        {"event_id": "theirs", "decision": Decision.COPY},
        {"event_id": "late there", "decision": Decision.TOO_LATE},
        {"event_id": "copied", "log_time_ms": DAY},
        {"event_id": "e0", "log_time_ms": DAY + 9 * HOUR_MS},
    ]
    base = _ROW | {"log_time_ms": DAY + HOUR_MS, "user": 7}
    wire = pa.Table.from_pylist(
        [base | {"offset": n} | row for n, row in enumerate(rows)], schema=archive_schema.SCHEMA
    )
    archive_worker.write_files(FileStore(settings.archive), 0, 0, 100, wire)
    for tier in ("hours", "days"):
        borders.publish(ClickHouse.of(settings), tier, range(settings.block_partitions), DAY + DAY_MS)


def _file_of(settings: Settings, file: Path, **changes: str) -> str:
    """The file by which the other region knows these settings."""
    names = ("kafka", "clickhouse", "archive", "namespace", "event_partitions", "block_partitions")
    values = {name: getattr(settings, name) for name in names} | changes
    secret = settings.user_secret.get_secret_value()
    file.write_text(
        "".join(f"{name} = {json.dumps(value)}\n" for name, value in (values | {"user_secret": secret}).items())
    )
    return str(file)


def test_the_night_bills_two_regions_as_one(new_settings: Callable[[], Settings], tmp_path: Path) -> None:
    own, other = new_settings(), new_settings()
    plant(own)
    _plant_elsewhere(other)
    env = environment(own)
    away = _file_of(other, tmp_path / "us-away.toml", clickhouse="http://127.0.0.1:1")
    refused = adclick("reconcile", "--date", DAY_SHOWN, cwd=None, **env | {"ADCLICK_OTHER_REGIONS": away})
    assert refused.returncode == 1 and "region us-away: ClickHouse" in refused.stderr, refused.stderr
    us = {"ADCLICK_OTHER_REGIONS": _file_of(other, tmp_path / "us.toml")}
    result = adclick("reconcile", "--date", DAY_SHOWN, "--json", cwd=None, **env | us)
    assert result.returncode == 3, result.stderr
    report = json.loads(result.stdout)
    assert {cause: amounts["clicks"] for cause, amounts in report["causes"].items()} == MOVED | {"other-region": 2}
    alone = adclick("reconcile", "--date", DAY_SHOWN, cwd=None, **env)
    assert alone.returncode == 1 and "bills events of region us, which this run lacks" in alone.stderr, alone.stderr
    client = ClickHouse.of(own)
    billed, users = (
        int(
            client.rows(
                f"SELECT sum({column}) FROM {own.database}.{table} FINAL WHERE run_id = {{run:String}}",
                {"run": report["run_id"]},
            )[0][0]
        )
        for column, table in (("clicks", "exact_hours"), ("users", "exact_users"))
    )
    # User 7 was in both regions.
    assert (billed, users) == (_EXACT + 2, 6)
    files = client.rows(
        f"SELECT path FROM {own.database}.run_files WHERE run_id = {{run:String}}", {"run": report["run_id"]}
    )
    assert {str(Path(path).parents[2]) for (path,) in files} == {own.archive, other.archive}


def test_a_copy_of_another_regions_log_tells_from_when_on_events_may_be_missing(settings: Settings) -> None:
    with pytest.raises(UserError, match=r"is no copy.*ADCLICK_PASSIVE=on"):
        read_copy(settings)
    topic = settings.topic(topics.EVENTS)
    # As a cluster may have it by default.
    Admin(settings.kafka_connection).configure({topic: {"message.timestamp.before.max.ms": "60000"}})
    topic_setup.ensure(settings.model_copy(update={"passive": "on"}))
    assert read_copy(settings) == Copy([None, None])
    producer = make_producer(settings.kafka_connection, {})
    for partition, time_ms in ((0, DAY + 5), (1, DAY + 3), (0, DAY + 4)):
        producer.produce(topic, b"{}", partition=partition, timestamp=time_ms)
    assert producer.flush(30) == 0
    copy = read_copy(settings)
    assert (copy, copy.resend_from_ms) == (Copy([DAY + 5, DAY + 3]), DAY + 3)
    topic_setup.ensure(settings)  # the region is promoted
    producer.produce(topic, b"{}", partition=0, timestamp=DAY)
    assert producer.flush(30) == 0
    with pytest.raises(UserError, match="is no copy"):
        read_copy(settings)
