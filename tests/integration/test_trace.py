"""`adclick trace` on the real backends: each fate of an event gets one clear answer."""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest

from infra.cli import main
from infra.clock import HOUR_MS, MINUTE_MS, iso, now_ms
from infra.columnar.columns import Values
from infra.file_store import FileStore
from infra.kafka import topics
from infra.kafka.event_producer import EventProducer
from infra.kafka.records import Record
from infra.kafka.transactions import TransactionalProducer
from infra.redis.client import Redis
from infra.settings import Settings
from ingest.archive import schema as archive_schema
from ingest.archive import worker as archive_worker
from ingest.archive.schema import Decision
from ingest.archive.worker import ArchiveWorker
from ingest.dedup.digest import digest_ids
from ingest.dedup.registry import Registry
from tests.clusters.s3_server import S3Server
from tests.flow import environment
from tests.integration.test_hot_tier import Shard
from tests.integration.test_ingest_worker import running
from tests.product import PATIENCE, wait_until
from tests.unit.test_partials_and_cells import partial

STRANGE = "ü\x1b[2J\u202e'"


@dataclass(frozen=True)
class Traced:
    """What the command said. `document`: of its JSON, empty where it printed none."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        return dict(json.loads(self.out)) if self.out.startswith("{") else {}

    @property
    def verdict(self) -> str:
        return str(self.document.get("verdict"))


def trace(settings: Settings, *words: str, as_json: bool = True) -> Traced:
    """Run the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    variables = {k: v for k, v in os.environ.items() if not k.startswith("ADCLICK_")} | environment(settings)
    argv = ["adclick", "trace", *words, *(["--json"] if as_json else [])]
    with (
        mock.patch.dict(os.environ, variables, clear=True),
        mock.patch("sys.argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main.main()
    return Traced(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def click(event_id: str, **more: Any) -> bytes:
    ids = dict.fromkeys(("campaign_id", "ad_id", "advertiser_id", "publisher_id"), 1)
    return json.dumps({"event_id": event_id, "event_type": "click", "event_time": now_ms(), **ids, **more}).encode()


def send(settings: Settings, event_id: str, **more: Any) -> None:
    producer = EventProducer(settings.kafka_connection)
    # One key, and so one partition: its newest event makes another one too late.
    producer.send(settings.topic(topics.EVENTS), [b"key"], [click(event_id, **more)])
    assert producer.flush(20) == 0


@contextlib.contextmanager
def archiving(settings: Settings) -> Iterator[None]:
    worker = ArchiveWorker(settings, "a")
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join(30 * PATIENCE)
        assert not thread.is_alive()


def test_an_event_is_followed_from_its_arrival_to_its_file(settings: Settings) -> None:
    settings = settings.model_copy(update={"archive_flush_ms": 100})

    def verdict(event_id: str, expected: str) -> dict[str, Any]:
        wait_until(lambda: trace(settings, event_id).verdict == expected, 15, f"{event_id} is {expected}")
        return trace(settings, event_id).document

    never = trace(settings, "one")
    assert (never.code, never.verdict) == (1, "not-found")
    for part in ("one was not found", "0 archived events", "dead letters since", "no dedup ids", "--since"):
        assert part in never.err
    send(settings, "one")
    place = verdict("one", "unread")["unread"][0]["message"]
    with running(settings):
        counted = verdict("one", "counted")
        send(settings, "one")
        send(settings, "late", event_time=now_ms() - 3 * HOUR_MS)
        send(settings, "dead", country="xx")
        send(settings, STRANGE)
        late, dead = verdict("late", "left-to-the-run"), verdict("dead", "rejected")
        wait_until(lambda: len(trace(settings, "one").document["messages"]) == 2, 15, "the copy is on its way")
        verdict(STRANGE, "counted")
    (message,) = counted["messages"]
    assert (message["message"], message["decision"], message["file"]) == (place, "counted", None)
    assert counted["recorded"][0]["message"] == place
    assert (late["messages"][0]["decision"], late["dead_letters"][0]["reason"]) == ("too-late", "too-late")
    assert (dead["messages"], dead["dead_letters"][0]["reason"]) == ([], "bad-value")
    assert "country" in dead["summary"]
    with archiving(settings):
        wait_until(lambda: all(m["file"] for m in trace(settings, "one").document["messages"]), 15, "it is in a file")
        wait_until(lambda: trace(settings, STRANGE).document["messages"][0]["file"], 15, "the last one, too")
    first, copy = trace(settings, "one").document["messages"]
    assert (first["decision"], copy["decision"], copy["copy_of"]) == ("counted", "copy", place)
    assert copy["windows"] == copy["runs"] == []
    shown = trace(settings, STRANGE, as_json=False)
    quoted = trace(settings, json.dumps(STRANGE))
    assert quoted.document["event_id"] == STRANGE
    for text in (shown.out, shown.err, quoted.out, trace(settings, STRANGE + "x", as_json=False).err):
        assert text
        assert all(c.isprintable() or c == "\n" for c in text)
    # Its archive is gone: what waits in Kafka still tells the first of them.
    Path(settings.archive).rename(Path(settings.archive).with_name("elsewhere"))
    away = trace(settings, "one")
    assert (away.code, away.verdict, len(away.document["messages"])) == (1, "counted", 2)
    assert f"the archive {settings.archive} does not exist" in away.err
    assert "not all was searched" in trace(settings, "never").err


def test_open_and_closed_windows_and_what_lies_in_redis_alone(settings: Settings) -> None:
    settings = settings.model_copy(update={"event_partitions": 1, "block_partitions": 1})
    minute_ms = now_ms() // MINUTE_MS * MINUTE_MS - 3 * MINUTE_MS
    row: dict[str, Any] = dict.fromkeys(archive_schema.SCHEMA.names, 1) | {
        "decision": Decision.COUNTED, "lateness": 0, "copy_of": None, "user": None, "log_time_ms": minute_ms, "time_ms": minute_ms,
    }  # fmt: skip
    rows = [
        row | {"event_id": "shown", "offset": 0},
        row | {"event_id": "unsure", "offset": 1, "decision": Decision.DOUBT},
        # Its first occurrence lies before what is searched.
        row | {"event_id": "copied", "offset": 2, "decision": Decision.COPY, "copy_of": 77},
        # No window shows it.
        row | {"event_id": "lost", "offset": 4, "ad_id": 9},
        row | {"event_id": "old", "offset": 3, "time_ms": minute_ms - 40 * 24 * HOUR_MS},
    ]
    wire = pa.Table.from_pylist(rows, schema=archive_schema.SCHEMA)
    archive_worker.write_files(FileStore(settings.archive), 0, 0, 10, wire)
    shard = Shard(settings)
    shard.show([partial(window_ms=minute_ms, clicks=1, country=1, device=1, late=0)], minute_ms)

    def states(event_id: str) -> list[tuple[str, int | None]]:
        traced = trace(settings, event_id)
        assert traced.code == 0, traced.err
        return [(w["state"], w["events"]) for w in traced.document["messages"][0]["windows"]]

    assert states("shown")[0] == ("provisional", 1)
    shard.show([partial(window_ms=minute_ms + MINUTE_MS, clicks=5)], minute_ms + MINUTE_MS)
    wait_until(lambda: states("shown")[0] == ("closed", 1), 5, "the minute is closed")
    (minute, *_) = trace(settings, "lost").document["messages"][0]["windows"]
    assert (minute["state"], minute["events"], minute["missing"]) == ("closed", 0, True)
    assert (
        f"has no event like 0/4; if it stays so in a minute, adclick audit --date {iso(minute_ms)[:10]}"
        in trace(settings, "lost", as_json=False).err
    )
    assert "has no event like" not in trace(settings, "shown", as_json=False).err
    unsure = trace(settings, "unsure")
    assert (unsure.code, unsure.verdict) == (0, "left-to-the-run")
    assert "Redis has lost" in unsure.document["summary"]
    assert "is not reconciled yet" in unsure.document["summary"]
    copied = trace(settings, "copied")
    assert (copied.verdict, "copy of 0/77" in copied.document["summary"]) == ("copy", True)
    # Recorded in Redis, and in no committed batch; and recorded, and archived under a day that is not searched.
    registry = Registry(Redis(settings.redis_access), settings.key_prefix, ttl_s=600, segment_ids=1_000)
    generation = now_ms() // (settings.dedup_horizon_s * 1000)
    digests = digest_ids(Values.of([b"pending", b"old"]))
    news = {generation: (digests, np.array([40, 3]))}
    assert (trace(settings, "pending").code, trace(settings, "old").code) == (1, 1)
    registry.record(registry.begin(0, 0), news, up_to=41, oldest_generation=generation - 1)
    pending, old = trace(settings, "pending"), trace(settings, "old")
    assert (pending.code, pending.verdict) == (0, "recorded")
    assert "read by ingest as 0/40" in pending.document["summary"]
    assert [m["message"] for m in old.document["messages"]] == ["0/3"]
    assert old.document["messages"][0]["windows"][0]["state"] == "no longer retained"
    by_date = trace(settings, "old", "--date", iso(minute_ms - 40 * 24 * HOUR_MS)[:10])
    assert by_date.verdict == "counted"


def test_a_mended_letter_leads_to_what_was_sent_and_an_archive_that_is_away_is_named(
    settings: Settings, s3_server: S3Server
) -> None:
    bucket = settings.namespace.replace("_", "-") + "traced"
    s3_server.make_bucket(bucket)
    settings = settings.model_copy(update={"archive": f"s3://{bucket}/all"})
    row: dict[str, Any] = dict.fromkeys(archive_schema.SCHEMA.names, 1) | {
        "decision": Decision.TOO_LATE, "copy_of": None, "log_time_ms": now_ms() + MINUTE_MS, "time_ms": now_ms() - 26 * HOUR_MS,
        "event_id": "mended", "offset": 5,
    }  # fmt: skip
    archive_worker.write_files(
        FileStore(settings.archive), 0, 5, 6, pa.Table.from_pylist([row], schema=archive_schema.SCHEMA)
    )
    producer = TransactionalProducer(settings.kafka_connection, f"{settings.namespace}letters")
    producer.open()
    headers = (("reason", b"bad-value"), ("detail", b"country"), ("source", b"ad-events/0/1"))
    letter = Record(settings.topic(topics.DEAD_LETTERS), b'{"event_id": "mended"}', None, 0, headers)
    producer.write([letter])
    traced = trace(settings, "mended", "--since", "-1h")
    assert traced.verdict == "left-to-the-run"
    assert traced.document["dead_letters"][0]["source"] == "ad-events/0/1"
    s3_server.network.cut()
    away = trace(settings, "mended")
    assert (away.code, away.verdict) == (1, "rejected")
    assert "archive: the archive" in away.err
