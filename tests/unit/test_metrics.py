"""What a router exposes to Prometheus is what the table of metrics says, and nothing that is not known is exposed as a number."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Any

import pytest

from infra.settings import Settings
from query.alerts.summary import AlertCounts, AlertSummary
from query.api import metrics, stored_bytes
from query.api.metric_table import LABELS, METRICS
from query.api.metrics_page import render_page
from query.status import UNKNOWN_STATUS
from tests.clusters.certificates import Authority

ROOT = Path(__file__).parents[2]
_COUNTS = {
    "messages": 21, "rejected": 1, "counted": 2, "copies": 3, "too_late": 4, "shed": 5, "doubt": 6, "canary": 8, "bloom_positives": 9, "bloom_false": 7,
    "too_large": 0, "malformed": 1, "missing_field": 0, "bad_value": 0, "from_the_future": 0,
}  # fmt: skip
_STATUS: dict[str, Any] = {
    "partitions": {"ad-events": [10, 20]}, "arrived": 100, "archived": 90, "read_events": 70,
    "canaries": [{"tier": "hot", "age_s": 1.5, "slowest_s": 40.0, "slowest": "shard 1"}], "warnings": ["a"],
    "open_transactions": {"ad-events/0": {"offset": 3, "messages": 5}, "ad-events/1": {"offset": 3, "messages": 6}},
    "ingest_workers": [{"worker": "ingest-0", "partitions": {"1": {}}, "counts": _COUNTS}, {"worker": "former", "partitions": {}}],
    "waits": {"stream-0": {"kafka": "Kafka: away"}}, "stopped_workers": {"ingest-1": "a hole"}, "stopped_detector": "a bug", "poisoned": {"ad-events/1": "why"},
    "silent_shards": [1], "stalled": ["a shard"], "level": "sampling", "stream_lag_s": 1.5, "watermark": "2026-11-29T00:00:00Z",
    "shards": [{"lag_s": 0.5, "watermark": None, "events": 7}, {"lag_s": None, "watermark": None, "events": None}],
    "redis_memory": [{"server": "127.0.0.1:6379", "used_bytes": 1, "limit_bytes": 2}],
    "last_reconciliation": {"published_at": "2026-11-29T03:00:00Z"}, "newest_reconciled_day": "2026-11-28",
    "reconciliation_alerts": ["2026-11-27"], "unbilled_events": 8, "problems": {"redis": "stream-0 waits"},
}  # fmt: skip


def _scrape(monkeypatch: pytest.MonkeyPatch, status: dict[str, Any], **settings: str) -> list[str]:
    monkeypatch.setattr(metrics, "read_status", lambda *_: UNKNOWN_STATUS | {"warnings": []} | status)
    summary = AlertSummary(0, 1, 28, (AlertCounts("ctr-drop", 1, 1, 0),))
    monkeypatch.setattr(metrics, "read_summary", lambda *_: summary)
    monkeypatch.setattr(stored_bytes, "read_log_sizes", lambda *_, **__: {"ad-events": 3})
    monkeypatch.setattr(stored_bytes, "_read_tables", lambda _: {"stream_days": 4})
    process = metrics.Metrics(Settings.model_validate(settings))
    process.answered("/v1/metrics", 200, 0.1)
    process.tier_read("hot", "answered", 0.1)
    process.key_used("k1", 429)
    process.key_charged("k1", 5)
    assert b"k1" not in process.render()
    return process.render(by_key=True).decode().splitlines()


def _exposed(lines: list[str]) -> dict[str, tuple[str, set[str], str]]:
    """name → (type, labels, help), of all metrics with a sample."""
    exposed: dict[str, tuple[str, set[str], str]] = {}
    name = text = kind = ""
    for line in lines:
        if line.startswith("# HELP "):
            name, text = line.split(" ", 3)[2:]
        elif line.startswith("# TYPE "):
            kind = line.split()[3]
        else:
            exposed[name] = (kind, set(re.findall(r'(\w+)="', line)) - {"le"}, text)
    return exposed


def test_a_router_that_knows_everything_exposes_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    identity = Authority(tmp_path).issue("router")
    lines = _scrape(
        monkeypatch, _STATUS, archive=str(tmp_path), http="https://127.0.0.1:8080", tls_certificate=str(identity.certificate),
        tls_key=str(identity.key),
    )  # fmt: skip
    table = {name: (row.kind, set(row.labels), row.text) for name, row in METRICS.items()}
    assert _exposed(lines) == table
    assert {label for row in METRICS.values() for label in row.labels} == LABELS.keys()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    # The authority signs for a day from now.
    expiry_s = float(samples['adclick_certificate_not_after_timestamp_seconds{setting="tls_certificate"}'])
    assert abs(expiry_s - (dt.datetime.now(dt.UTC) + dt.timedelta(days=1)).timestamp()) < 60
    expected = {
        'adclick_lag_messages{partition="1",topic="ad-events"}': 20, "adclick_open_transaction_messages": 11,
        "adclick_unread_partitions": 3, "adclick_silent_shards": 1, "adclick_overload_level": 2, "adclick_backend_up": None,
        'adclick_dead_letters_total{reason="malformed",worker="ingest-0"}': 1, 'adclick_dead_letters_total{reason="too-late",worker="ingest-0"}': 4,
        'adclick_stored_bytes{name="ad-events",store="kafka"}': 3, 'adclick_stored_bytes{name="stream_days",store="clickhouse"}': 4,
        'adclick_stored_bytes{name="files",store="archive"}': sum(file.stat().st_size for file in tmp_path.iterdir()),
        'adclick_key_requests_total{key="k1",outcome="limited"}': 1, 'adclick_key_rows_read_total{key="k1"}': 5,
        'adclick_ingest_messages_total{outcome="doubt",worker="ingest-0"}': 6, 'adclick_shown_events_total{shard="0"}': 7,
        'adclick_canary_age_seconds{path="slowest",tier="hot"}': 40, 'adclick_canary_age_seconds{path="fastest",tier="hot"}': 1.5,
        "adclick_watermark_timestamp_seconds": dt.datetime(2026, 11, 29, tzinfo=dt.UTC).timestamp(),
        "adclick_newest_reconciled_day_timestamp_seconds": dt.datetime(2026, 11, 28, tzinfo=dt.UTC).timestamp(),
        'adclick_backend_up{backend="redis"}': 0, 'adclick_backend_up{backend="kafka"}': 1,
    }  # fmt: skip
    assert {name: float(samples[name]) if name in samples else None for name in expected} == expected


def test_what_is_not_known_is_missing_and_not_zero(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    away = dict.fromkeys(("kafka", "redis", "clickhouse"), "away")
    exposed = _exposed(_scrape(monkeypatch, {"problems": away}, archive=str(tmp_path / "elsewhere")))
    process = ["adclick_build_info", "adclick_http_request_duration_seconds", "adclick_http_requests_total"]
    process += ["adclick_tier_read_duration_seconds", "adclick_tier_reads_total"]
    process += ["adclick_key_requests_total", "adclick_key_rows_read_total"]
    assert sorted(exposed) == sorted(["adclick_backend_up", "adclick_warnings", *process])


@pytest.mark.parametrize("name", METRICS)
def test_names_follow_the_conventions(name: str) -> None:
    row = METRICS[name]
    assert re.fullmatch(r"adclick(_[a-z]+)+", name)
    assert (row.kind == "counter") == name.endswith("_total")
    assert row.kind != "histogram" or name.endswith("_duration_seconds")
    assert ("timestamp" in name) == name.endswith("_timestamp_seconds")


def test_the_page_is_that_of_the_code() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == render_page(), "make monitoring makes it again"
