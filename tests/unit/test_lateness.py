from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import lateness
from ingest.lateness import NO_WATERMARK, Lateness

MINUTE = 60_000


def verdict_of(time_ms: int, watermark_ms: int) -> Lateness:
    verdict, _, _ = lateness.judge_lateness(np.array([time_ms]), np.array([True]), watermark_ms)
    return Lateness(verdict[0])


@pytest.mark.parametrize(
    ("late_by_ms", "verdict"),
    [
        (-1, Lateness.ON_TIME), (0, Lateness.ON_TIME), (1, Lateness.CORRECTS), (5 * MINUTE, Lateness.CORRECTS),
        (5 * MINUTE + 1, Lateness.FLAGGED), (60 * MINUTE, Lateness.FLAGGED), (60 * MINUTE + 1, Lateness.TOO_LATE),
    ],
)  # fmt: skip
def test_lateness_is_counted_from_the_end_of_the_minute(late_by_ms: int, verdict: Lateness) -> None:
    end = 1_000 * MINUTE
    for time_ms in (end - MINUTE, end - 1):
        assert verdict_of(time_ms, end + late_by_ms) == verdict


def test_the_first_event_of_a_partition_is_never_late() -> None:
    assert verdict_of(0, NO_WATERMARK) == Lateness.ON_TIME


_log = st.lists(st.tuples(st.integers(0, 10**7), st.booleans()), max_size=60)


@given(_log, st.lists(st.integers(1, 20), min_size=1, max_size=10))
def test_verdicts_do_not_depend_on_the_size_of_batches(log: list[tuple[int, bool]], sizes: list[int]) -> None:
    expected, mark = [], None
    for time_ms, first in log:
        late_by = 0 if mark is None else mark - (time_ms // MINUTE + 1) * MINUTE
        expected.append(
            0 if not first or late_by <= 0 else 1 if late_by <= 300_000 else 2 if late_by <= 3_600_000 else 3
        )
        if first:
            mark = max(mark if mark is not None else time_ms - 5_000, time_ms - 5_000)
    verdicts: list[int] = []
    watermark, start, turn = NO_WATERMARK, 0, 0
    while start < len(log):
        part = log[start : start + sizes[turn % len(sizes)]]
        times, firsts = np.array([t for t, _ in part]), np.array([f for _, f in part])
        verdict, _, watermark = lateness.judge_lateness(times, firsts, watermark)
        verdicts += verdict.tolist()
        start, turn = start + len(part), turn + 1
    assert verdicts == expected
    assert watermark == (NO_WATERMARK if mark is None else mark)
