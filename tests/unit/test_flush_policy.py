"""When a stage flushes: a table of cases."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clock import MINUTE_MS
from ingest.blocks import BlockHeader, SourceRange
from stream.flush_policy import FlushPolicy, Fresh, Patient, Waiting
from stream.intake import Durable, Intake
from stream.topology import STAGES
from tests.unit.test_partials_and_cells import frame, partial

NOTHING = Waiting(rows=0, corrects=False, crosses_end=False, messages=1, behind_ms=0)
ROWS = replace(NOTHING, rows=10)
BEHIND = replace(ROWS, behind_ms=5_000)
CANARY = replace(NOTHING, has_canary=True)
CORRECTS = replace(ROWS, corrects=True)


@pytest.mark.parametrize(
    ("policy", "waiting", "since_s", "due"),
    [
        (Fresh(), NOTHING, 60.0, False),
        (Fresh(), ROWS, 0.0, True),
        (Fresh(), replace(NOTHING, crosses_end=True), 0.0, True),
        (Fresh(), replace(NOTHING, messages=200), 60.0, False),
        (Fresh(), replace(NOTHING, messages=201), 60.0, True),
        (Fresh(), BEHIND, 1.9, False),
        (Fresh(), BEHIND, 2.0, True),
        (Fresh(), replace(ROWS, is_ingest_behind=True), 1.9, False),
        (Fresh(), replace(BEHIND, rows=250_000), 0.0, True),
        (Fresh(), replace(BEHIND, crosses_end=True), 1.9, False),
        (Fresh(), CANARY, 9.9, False),
        (Fresh(), CANARY, 10.0, True),
        (Fresh(), replace(CANARY, behind_ms=5_000), 9.9, False),
        (Patient(), NOTHING, 60.0, False),
        (Patient(), CANARY, 9.9, False),
        (Patient(), CANARY, 10.0, True),
        (Patient(), ROWS, 9.9, False),
        (Patient(), ROWS, 10.0, True),
        (Patient(), CORRECTS, 1.4, False),
        (Patient(), CORRECTS, 1.5, True),
        (Patient(), replace(ROWS, rows=500_000), 0.0, True),
        (Patient(), replace(NOTHING, crosses_end=True), 0.0, True),
        (Patient(), replace(NOTHING, messages=201), 9.9, False),
        (Patient(), replace(NOTHING, messages=201), 10.0, True),
    ],
)
def test_a_flush_is_due_by_its_policy(policy: FlushPolicy, waiting: Waiting, since_s: float, due: bool) -> None:
    # The last flush was at 0, when a round began.
    assert policy.is_due(waiting, since_s, since_s, 1) is due


@pytest.mark.parametrize(
    ("policy", "waiting", "since_s"),
    [(Fresh(), ROWS, 63 / 64), (Fresh(), BEHIND, 32.0), (Patient(), CORRECTS, 16.0), (Patient(), ROWS, 16.0)],
)
def test_with_many_partitions_each_waits_longer_for_its_flush(
    policy: FlushPolicy, waiting: Waiting, since_s: float
) -> None:
    assert policy.is_due(waiting, since_s, since_s, 64)
    assert not policy.is_due(waiting, since_s - 0.1, since_s - 0.1, 64)


@given(st.integers(0, 10**8), st.integers(1, 10_000), st.integers(1, 100))
def test_partitions_of_hours_flush_in_rounds(flushed: int, since: int, partitions: int) -> None:
    # Sixty-fourths of a second are exact.
    flushed_s, now_s = flushed / 64, (flushed + since) / 64
    policy = Patient()
    wait_s = max(policy.wait_s, partitions / policy.flushes_per_s)
    due = policy.is_due(ROWS, now_s, since / 64, partitions)
    assert due is (now_s // wait_s > flushed_s // wait_s)


def test_however_many_partitions_there_are_fresh_minutes_wait_for_a_second_at_most() -> None:
    assert Fresh().is_due(ROWS, 1.0, 1.0, 1_000)


def test_what_waits_for_its_flush_is_not_taken_for_a_backlog() -> None:
    intake = Intake(MINUTE_MS, 1, Durable())
    sent_ms = 1_000_000
    intake.apply_block(
        0, frame([partial()]), BlockHeader(1, (SourceRange(0, 0, 1, 0, False),), sent_ms), "here", sent_ms + 900
    )
    assert Fresh().is_due(intake.waiting(), 1.0, 1.0, 64)
    intake.apply_block(
        1, frame([partial()]), BlockHeader(1, (SourceRange(0, 1, 2, 0, False),), sent_ms), "here", sent_ms + 1_001
    )
    assert not Fresh().is_due(intake.waiting(), 1.0, 1.0, 64)


def test_only_the_stage_of_minutes_is_fresh_and_uses_the_clock() -> None:
    assert [s.name for s in STAGES.values() if s.is_fresh] == ["minute"]
    assert [s.name for s in STAGES.values() if s.flush_policy.looks_at_clock] == ["minute"]
