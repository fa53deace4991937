"""The archive in an S3-compatible store: moto's server, by that protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, now_ms
from infra.errors import UserError
from infra.file_store import FileStore
from infra.settings import Settings
from ingest import archive, archive_files, archived, compaction
from tests.conftest import adclick
from tests.flow import STEP, environment, flow
from tests.integration.test_reconcile import DAY_SHOWN, MOVED, PLANTED_ROWS, causes_of, plant

_HOUR_MS = 20_000 * DAY_MS
_ROW: dict[str, Any] = dict.fromkeys(archived.SCHEMA.names, 1) | {"log_time_ms": _HOUR_MS, "time_ms": _HOUR_MS}


class Server:
    """A store that can go away and come back with what it held."""

    def __init__(self) -> None:
        self._port, self._running = 0, ThreadedMotoServer()
        self.start()

    def start(self) -> None:
        """Where it was before, if it was."""
        self._running = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._running.start()
        self.url = "http://{}:{}".format(*self._running.get_host_and_port())
        self._port = self._running.get_host_and_port()[1]

    def stop(self) -> None:
        """Whoever calls from now on is refused."""
        self._running.stop()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.stop()


@pytest.fixture
def in_bucket(settings: Settings, server: Server) -> Settings:
    """Settings of the test's own, with an empty bucket."""
    bucket = settings.namespace.replace("_", "-") + "archive"
    system, _ = fs.FileSystem.from_uri(f"s3://{bucket}/?allow_bucket_creation=true")
    system.create_dir(bucket)
    return settings.model_copy(update={"archive": f"s3://{bucket}/all/of/it"})


def test_a_day_is_reconciled_audited_and_sent_again(in_bucket: Settings) -> None:
    plant(in_bucket)
    env = environment(in_bucket)
    done = adclick("reconcile", "--date", DAY_SHOWN, "--json", cwd=None, **env)
    assert (done.returncode, causes_of(done.stdout)) == (3, MOVED), done.stderr
    store = FileStore(in_bucket.archive)
    kept = ClickHouse(in_bucket.clickhouse, in_bucket.database).rows(
        f"SELECT path, bytes, sha256 FROM {in_bucket.database}.run_files"
    )
    assert sorted(kept) == [(store.address(f.name), f.bytes, store.sha256(f.name)) for f in store.files()]
    audited = adclick("audit", "--date", DAY_SHOWN, cwd=None, **env)
    assert "comes out of the archive again" in audited.stderr, audited.stderr
    again = adclick("replay", in_bucket.archive, "--json", cwd=None, **env)
    assert json.loads(again.stdout)["acknowledged"] == PLANTED_ROWS


def test_small_files_become_one_and_days_go(in_bucket: Settings) -> None:
    store = FileStore(in_bucket.archive)
    for n in range(4):
        rows = [_ROW | {"event_id": f"e{o}", "offset": o} for o in range(10 * n, 10 * n + 12)]
        archive.write_files(store, 0, 10 * n, 10 * n + 12, pa.Table.from_pylist(rows, schema=archived.SCHEMA))

    def offsets() -> list[int]:
        files = archive_files.current(archive_files.named(store.files()))
        return [o for f in files for o in archive_files.read(store, f.name, ["offset"])["offset"].to_list()]

    assert set(offsets()) == set(range(42))
    assert list(compaction.due(store, [0], now_ms() + HOUR_MS)) == []
    for group in compaction.due(store, [0], now_ms() + compaction.QUIET_MS + HOUR_MS):
        compaction.merge(store, group)
    assert offsets() == list(range(42))
    assert compaction.clean(store, [0], now_ms()) == []
    assert len(compaction.clean(store, [0], now_ms() + compaction.KEPT_MS + HOUR_MS)) == 4
    assert offsets() == list(range(42))
    assert compaction.expire(store, now_ms(), 1, None) == ["event_date=2024-10-04"]
    assert store.files() == []


def test_the_archive_worker_dies_before_an_upload_and_the_store_goes_away(
    in_bucket: Settings, server: Server, tmp_path: Path
) -> None:
    with flow(in_bucket, tmp_path) as running:
        running.settings = running.settings.model_copy(update={"ingest_batch": 1_000, "archive_flush_ms": 500})
        running.start("ingest-0")
        running.start("archive-0", "kill@store.written:2")
        running.send(STEP // 2)
        running.died("archive-0")
        server.stop()
        running.start("archive-0")
        running.send()
        server.start()
        running.archived_within(60)
        assert running.workers["archive-0"].poll() is None


@pytest.mark.parametrize("url", ["s3://?secret_key=pass", "gs://bucket/x?secret_key=pass", "s3:///x?secret_key=pass"])
def test_a_url_that_names_no_bucket_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(UserError, match=r"neither a folder nor|Missing bucket name") as refused:
        FileStore(url)
    assert "pass" not in str(refused.value)
