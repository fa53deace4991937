"""Canaries on real workers: beside events that stay exact, to every tier, and through the proof of the nightly run."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from batch import coverage
from infra.file_store import FileStore
from infra.settings import Settings
from ingest.archive import files as archive_files
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
        counts = read_status(running.settings)["counts"]
        assert counts["canary"] > 0
        outcomes = ("counted", "copies", "too_late", "rejected", "shed", "doubt", "canary")
        assert counts["messages"] == sum(counts[name] for name in outcomes)
        running.stop("canary-0")
        _check_proof(running, monkeypatch)
        wait_until(lambda: min(_slowest_s(running.settings).values()) > 5, 20, lambda: f"{_describe(running)}")
    assert read_status(settings)["canaries"] == [], "they are off there"


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

    monkeypatch.setattr(coverage, "_holds_messages", lambda *_: True)
    assert missing() == 0, "marks alone account for all"
    monkeypatch.undo()
    monkeypatch.setattr(coverage, "read_marks", lambda *_: ())
    assert missing() == 0, "canaries are read where their marks are gone"
    monkeypatch.setattr(coverage, "is_canary", lambda _: False)
    assert missing() == marked, "or all of them would be missing"
