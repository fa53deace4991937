"""The archive in an S3-compatible store: moto's server, by that protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, now_ms
from infra.errors import UserError
from infra.file_store import FileStore
from infra.settings import Settings
from ingest.archive import compaction
from ingest.archive import files as archive_files
from ingest.archive import schema as archive_schema
from ingest.archive import worker as archive_worker
from tests.clusters.s3_server import S3Server
from tests.conftest import adclick
from tests.flow import STEP, environment, flow
from tests.integration.test_reconcile import DAY_SHOWN, MOVED, PLANTED_ROWS, causes_of, plant

_HOUR_MS = 20_000 * DAY_MS
_ROW: dict[str, Any] = dict.fromkeys(archive_schema.SCHEMA.names, 1) | {"log_time_ms": _HOUR_MS, "time_ms": _HOUR_MS}


@pytest.fixture
def in_bucket(settings: Settings, s3_server: S3Server) -> Settings:
    """Settings of the test's own, with an empty bucket."""
    bucket = settings.namespace.replace("_", "-") + "archive"
    s3_server.make_bucket(bucket)
    return settings.model_copy(update={"archive": f"s3://{bucket}/all/of/it"})


def test_a_day_in_a_bucket_is_reconciled_audited_and_replayed(in_bucket: Settings) -> None:
    plant(in_bucket)
    env = environment(in_bucket)
    reconciled = adclick("reconcile", "--date", DAY_SHOWN, "--json", cwd=None, **env)
    assert (reconciled.returncode, causes_of(reconciled.stdout)) == (3, MOVED), reconciled.stderr
    store = FileStore(in_bucket.archive)
    run_files = ClickHouse(in_bucket.clickhouse, in_bucket.database).rows(
        f"SELECT path, bytes, sha256 FROM {in_bucket.database}.run_files"
    )
    assert sorted(run_files) == [(store.address(f.name), f.bytes, store.sha256(f.name)) for f in store.files()]
    audited = adclick("audit", "--date", DAY_SHOWN, cwd=None, **env)
    assert "the archive reproduces what run" in audited.stderr, audited.stderr
    replayed = adclick("replay", in_bucket.archive, "--json", cwd=None, **env)
    assert json.loads(replayed.stdout)["acknowledged"] == PLANTED_ROWS


def test_files_in_a_bucket_are_merged_and_old_days_removed(in_bucket: Settings) -> None:
    store = FileStore(in_bucket.archive)
    for n in range(4):
        rows = [_ROW | {"event_id": f"e{o}", "offset": o} for o in range(10 * n, 10 * n + 12)]
        archive_worker.write_files(
            store, 0, 10 * n, 10 * n + 12, pa.Table.from_pylist(rows, schema=archive_schema.SCHEMA)
        )

    def offsets() -> list[int]:
        files = archive_files.current_files(archive_files.parse_names(store.files()))
        return [o for f in files for o in archive_files.read_columns(store, f.name, ["offset"])["offset"].to_list()]

    assert set(offsets()) == set(range(42))
    assert list(compaction.due_groups(store, [0], now_ms() + HOUR_MS)) == []
    for group in compaction.due_groups(store, [0], now_ms() + compaction.QUIET_MS + HOUR_MS):
        compaction.merge_files(store, group)
    assert offsets() == list(range(42))
    assert compaction.remove_merged(store, [0], now_ms()) == []
    assert len(compaction.remove_merged(store, [0], now_ms() + compaction.KEPT_MS + HOUR_MS)) == 4
    assert offsets() == list(range(42))
    assert compaction.remove_expired_days(store, now_ms(), 1, None) == [], "its files are new"
    assert compaction.remove_expired_days(store, now_ms() + DAY_MS, 1, None) == ["event_date=2024-10-04"]
    assert store.files() == []


def test_the_bucket_is_complete_after_a_kill_before_an_upload_and_an_outage(
    in_bucket: Settings, s3_server: S3Server, tmp_path: Path
) -> None:
    with flow(in_bucket, tmp_path) as running:
        running.settings = running.settings.model_copy(update={"ingest_batch": 1_000, "archive_flush_ms": 500})
        running.start("ingest-0")
        running.start("archive-0", "kill@store.written:2")
        running.send(STEP // 2)
        running.wait_until_killed("archive-0")
        s3_server.network.cut()
        running.start("archive-0")
        running.send()
        s3_server.network.restore()
        running.wait_until_archived(60)
        assert running.workers["archive-0"].poll() is None


@pytest.mark.parametrize("url", ["s3://?secret_key=pass", "gs://bucket/x?secret_key=pass", "s3:///x?secret_key=pass"])
def test_a_url_that_names_no_bucket_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(UserError, match=r"neither a folder nor|Missing bucket name") as refused:
        FileStore(url)
    assert "pass" not in str(refused.value)
