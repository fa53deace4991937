"""Settings have an origin; mistakes of users are reported in one line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from infra.cli.quantities import duration_ms
from infra.clickhouse.client import ClickHouse
from infra.clickhouse.deployment import ONE_SERVER
from infra.clickhouse.schema import apply_migrations
from infra.embedded.lifeline import no_children_after_failure
from infra.errors import UsageError, UserError
from infra.settings import resolve
from infra.worker_process import worker_name
from ingest.replay.sender import Pace, parse_pace
from query.serve import run_router


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ADCLICK_KAFKA", "ADCLICK_CONFIG", "ADCLICK_DIR", "ADCLICK_CURRENCY"):
        monkeypatch.delenv(name, raising=False)


def test_each_setting_has_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stack").mkdir()
    (tmp_path / "stack" / "endpoints.json").write_text(json.dumps({"kafka": "stack:1", "api_key": "s3cret"}))
    (tmp_path / "c.toml").write_text('currency = "EUR"\nkafka = "file:1"\n')
    monkeypatch.setenv("ADCLICK_CONFIG", str(tmp_path / "c.toml"))
    assert resolve().origins["kafka"].endswith("c.toml")
    monkeypatch.setenv("ADCLICK_KAFKA", "variable:1")
    resolved = resolve()
    assert (resolved.settings.kafka, resolved.origins["kafka"]) == ("variable:1", "ADCLICK_KAFKA")
    assert (resolved.settings.currency, resolved.origins.get("redis")) == ("EUR", None)
    named = resolve(str(tmp_path / "stack"))
    assert named.settings.kafka == "stack:1"
    assert resolve(str(tmp_path / "stack"), stack=False).settings.kafka == "variable:1"
    assert named.masked()["api_key"] == ("********", str(tmp_path / "stack" / "endpoints.json"))


def test_passwords_in_addresses_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADCLICK_CLICKHOUSE", "http://me:pass@host:8123")
    monkeypatch.setenv("ADCLICK_ARCHIVE", "s3://bucket/x?access_key=me&secret_key=pass&region=here")
    assert resolve().masked()["clickhouse"][0] == "http://me:********@host:8123"
    assert resolve().masked()["archive"][0] == "s3://bucket/x?access_key=********&secret_key=********&region=here"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CURRENCY", "euro"),
        ("EVENT_PARTITIONS", "0"),
        ("FLUSH_MS", "soon"),
        ("RECONCILE_AT", "25:00"),
        ("RECONCILE_AT", "0 3 * *"),
        ("RECONCILE_AT", "0 3 31 2 *"),
        ("SHED", "maybe"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ADCLICK_{name}", value)
    with pytest.raises(UserError, match=f"setting {name.lower()}.*ADCLICK_{name}"):
        resolve()


def test_an_unknown_name_in_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.toml").write_text("kafak = 1\n")
    monkeypatch.setenv("ADCLICK_CONFIG", str(tmp_path / "c.toml"))
    with pytest.raises(UserError, match="kafak"):
        resolve()


def test_paces_and_durations_are_parsed() -> None:
    assert (parse_pace("max"), parse_pace("real-time"), parse_pace("2.5")) == (
        Pace(),
        Pace(real_time=True),
        Pace(rate=2.5),
    )
    assert [duration_ms(t) for t in ("90s", "30m", "26h", "2d")] == [90_000, 1_800_000, 93_600_000, 172_800_000]
    for wrong in ("0", "-1", "nan"):
        with pytest.raises(UsageError):
            parse_pace(wrong)


def test_a_worker_without_a_name_has_one_that_no_other_container_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADCLICK_WORKER", raising=False)
    monkeypatch.setattr("os.getpid", lambda: 1)
    monkeypatch.setattr("socket.gethostname", lambda: "vm")
    names = {worker_name("ingest") for _ in range(1000)}
    assert len(names) == 1000
    assert all(name.startswith("ingest-vm-1-") for name in names)
    monkeypatch.setenv("ADCLICK_WORKER", "ingest-7")
    assert worker_name("ingest") == "ingest-7"


class _WithoutPolicy:
    """A ClickHouse whose storage policies are these volumes of `tiered`; it must not be written to."""

    database, deployment = "adclick", ONE_SERVER

    def __init__(self, *volumes: str) -> None:
        self._volumes = volumes

    def rows(self, sql: str, _parameters: object = None) -> list[tuple[object, ...]]:
        if "storage_policies" in sql:
            return [(volume,) for volume in self._volumes]
        return [(0,)]

    def command(self, sql: str, _parameters: object = None) -> None:
        raise AssertionError(f"written before the policy was checked: {sql}")


def test_what_is_said_of_another_clickhouse_does_not_apply_to_the_stacks_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "endpoints.json").write_text(json.dumps({"clickhouse": "http://127.0.0.1:1"}))
    monkeypatch.setenv("ADCLICK_CLICKHOUSE_CLUSTER", "blue")
    monkeypatch.setenv("ADCLICK_CLICKHOUSE_CA", "ca.pem")
    own = resolve(str(tmp_path)).settings
    assert (own.clickhouse, own.clickhouse_cluster, own.clickhouse_ca) == ("http://127.0.0.1:1", "", "")
    monkeypatch.setenv("ADCLICK_DIR", str(tmp_path))
    monkeypatch.setenv("ADCLICK_CLICKHOUSE", "https://elsewhere")
    other = resolve().settings
    assert (other.clickhouse, other.clickhouse_cluster, other.clickhouse_ca) == ("https://elsewhere", "blue", "ca.pem")


@pytest.mark.parametrize(
    ("volumes", "expected"),
    [((), "no storage policy named tiered"), (("default",), "no volume fast"), (("fast",), "no volume slow")],
)
def test_a_missing_storage_policy_is_reported_before_any_table_is_made(volumes: tuple[str, ...], expected: str) -> None:
    with pytest.raises(UserError, match=rf"{expected}.*operating\.md"):
        apply_migrations(cast("ClickHouse", _WithoutPolicy(*volumes)))


@pytest.mark.parametrize(
    ("http", "certificate", "expected"),
    [
        ("https://127.0.0.1:0", "", "needs a certificate"),
        ("http://127.0.0.1:0", "cert.pem", "does not use it"),
    ],
)
def test_a_router_refuses_an_address_that_contradicts_its_certificate(
    http: str, certificate: str, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        run_router(resolve().settings.model_copy(update={"http": http, "tls_certificate": certificate}))


@pytest.mark.parametrize("failure", [KeyboardInterrupt, UserError])
def test_children_of_a_step_that_fails_end_with_it(failure: type[BaseException]) -> None:
    argv = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"]
    with subprocess.Popen(argv) as earlier:
        with pytest.raises(failure), no_children_after_failure():
            started = subprocess.Popen(argv)
            raise failure("stop")
        assert started.wait(60) == -signal.SIGKILL
        assert earlier.poll() is None
        with no_children_after_failure():
            kept = subprocess.Popen(argv)
        assert kept.poll() is None
        for child in (earlier, kept):
            child.kill()
            child.wait(60)
