"""Canaries on real workers: beside events that stay exact, to every tier, and through the proof of the nightly run."""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from batch import coverage
from infra.file_store import FileStore
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.probe_producer import ProbeProducer
from infra.kafka.records import Record
from infra.settings import Settings
from ingest.archive import files as archive_files
from ingest.canary.marker import encode_canary
from ingest.canary.marks import read_marks
from query.status import read_status
from tests.flow import STEP, Flow, flow
from tests.product import wait_until


def _slowest_s(settings: Settings) -> dict[str, float]:
    """Tier → how long ago the last canary of its slowest path was sent."""
    return {canary["tier"]: canary["slowest_s"] for canary in read_status(settings)["canaries"]}


def test_canaries_get_to_every_tier_and_are_counted_nowhere(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with flow(settings.model_copy(update={"canary_s": 1}), tmp_path) as running:
        running.start("canary-0")
        running.start("archive-0")
        running.start("ingest-0", "kill@ingest.produced:4")
        running.start("stream-0", "kill@hot.written:6")
        running.send(STEP // 2)
        for name in ("ingest-0", "stream-0"):
            running.wait_until_killed(name)
            running.start(name)
        running.send()
        everywhere = ["ingest", "archive", "hot", "warm", "cold"]
        wait_until(lambda: list(_slowest_s(running.settings)) == everywhere, 90, lambda: f"{_describe(running)}")
        running.wait_until_exact(60)
        running.wait_until_archived(30)

        def are_fresh() -> bool:
            ages = _slowest_s(running.settings)
            return max(ages[tier] for tier in ("ingest", "archive", "hot")) < 12 and max(ages.values()) < 60

        wait_until(are_fresh, 60, lambda: f"{_describe(running)}")
        now = read_status(running.settings)
        assert now["read_events"] == now["arrived_events"] == len(running.events.lines) < now["arrived"]
        counts = now["counts"]
        assert counts["canary"] > 0
        outcomes = ("counted", "copies", "too_late", "rejected", "shed", "doubt", "canary")
        assert counts["messages"] == sum(counts[name] for name in outcomes)
        running.stop("canary-0")
        _check_proof(running, monkeypatch)
        wait_until(lambda: min(_slowest_s(running.settings).values()) > 5, 20, lambda: f"{_describe(running)}")
    assert read_status(settings)["canaries"] == [], "they are off there"


def test_a_partition_that_is_not_read_is_the_slowest_path(settings: Settings, tmp_path: Path) -> None:
    events = settings.topic(topics.EVENTS)
    with flow(settings.model_copy(update={"canary_s": 1}), tmp_path) as running:
        running.start("ingest-0")
        running.start("canary-0")

        def ingest() -> dict[str, Any]:
            found = [canary for canary in read_status(running.settings)["canaries"] if canary["tier"] == "ingest"]
            return found[0] if found else {"age_s": math.inf, "slowest_s": math.inf, "slowest": None}

        wait_until(lambda: ingest()["slowest_s"] < 4, 40, lambda: f"{_describe(running)}")
        foreign = Producer({"bootstrap.servers": settings.kafka, "transactional.id": f"{settings.namespace}foreign"})
        foreign.init_transactions(30)
        foreign.begin_transaction()
        foreign.produce(events, b"{}", partition=1)
        foreign.flush(30)

        def is_behind() -> bool:
            canary = ingest()
            return bool(canary["slowest"] == f"{events}/1" and canary["slowest_s"] > 5 > canary["age_s"])

        wait_until(is_behind, 30, lambda: f"{_describe(running)}")
        foreign.abort_transaction(30)
        wait_until(lambda: ingest()["slowest_s"] < 4, 30, lambda: f"{_describe(running)}")


def test_partitions_that_are_not_there_keep_no_canary_from_the_others(settings: Settings) -> None:
    value, headers = encode_canary(1)
    canaries = [Record(settings.topic(topics.EVENTS), value, partition=p, headers=headers) for p in range(3)]
    producer = ProbeProducer(settings.kafka_connection, 5)
    acknowledged, refusal = 0, ""
    for _ in range(5):
        count, reason = producer.send(canaries, 2.0)
        acknowledged, refusal = acknowledged + count, refusal or reason
    assert acknowledged == 10
    assert "partition" in refusal
    ends = Admin(settings.kafka_connection).ends(settings.topic(topics.EVENTS), 2)
    assert ends == [5, 5]


def _describe(running: Flow) -> Any:
    return read_status(running.settings)["canaries"], running._describe_workers()


def _check_proof(running: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each offset of ad-events is accounted for: by the marks of canaries, and by the canaries themselves where marks are gone."""
    settings = running.settings
    ends = coverage.wait_for_archive(settings, 60, lambda _: None)
    files = archive_files.current_files(archive_files.parse_names(FileStore(settings.archive).files()))
    today = dt.datetime.now(dt.UTC).date()
    marked = sum(len(mark.offsets) for mark in read_marks(settings, 0))
    assert marked > 2

    def missing() -> int:
        proof = coverage.prove(settings, files, today, ends)
        return sum(hole.to_offset - hole.from_offset for hole in proof.missing)

    monkeypatch.setattr(coverage, "_with_messages", lambda _settings, gaps, _bases: list(gaps))
    assert missing() == 0, "marks alone account for all"
    monkeypatch.undo()
    monkeypatch.setattr(coverage, "read_marks", lambda *_: ())
    assert missing() == 0, "canaries are read where their marks are gone"
    monkeypatch.setattr(coverage, "_is_canary", lambda _records, _row: False)
    assert missing() == marked, "or all of them would be missing"
