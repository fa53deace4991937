"""Log time and verdicts where timestamps of messages cannot be true."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS
from infra.columnar.columns import Ints, Values
from ingest import log_time
from ingest.decoding.decode import decode_events
from ingest.events import MAX_AHEAD_MS, Reason
from ingest.position import Position

NOW = 1_800_000_000_000
YEARS_MS = 3 * 365 * DAY_MS


def times(*timestamps_ms: int, before_ms: int = NOW - HOUR_MS, live: bool = False) -> list[int]:
    log_times: list[int] = log_time.log_times(np.array(timestamps_ms), before_ms, NOW, live=live).tolist()
    return log_times


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (NOW + YEARS_MS, "years ahead"),
        (NOW * 1000, "microseconds"),
        (NOW + 11 * MINUTE_MS, "a clock that is ahead"),
        (-1, "no timestamp"),
        (0, "never set"),
        (NOW // 1000, "seconds"),
        (NOW - YEARS_MS, "years behind"),
    ],
)
def test_a_timestamp_that_cannot_be_true_does_not_move_log_time(wrong: int, why: str) -> None:
    assert times(NOW - MINUTE_MS, wrong, NOW) == [NOW - MINUTE_MS, NOW - MINUTE_MS, NOW], why
    assert times(wrong, NOW - MINUTE_MS) == [NOW - HOUR_MS, NOW - MINUTE_MS], why


def test_a_partition_read_to_its_end_without_a_credible_timestamp_follows_the_clock() -> None:
    assert times(-1, -1) == [NOW - HOUR_MS] * 2
    assert times(-1, -1, live=True) == [NOW, NOW]


@given(st.lists(st.integers(-1, 2 * NOW), min_size=1, max_size=30), st.booleans())
def test_log_time_never_goes_back_and_is_never_far_ahead_of_the_clock(timestamps: list[int], live: bool) -> None:
    log_times = times(*timestamps, live=live)
    assert log_times == sorted(log_times)
    assert log_times[-1] <= NOW + log_time.AHEAD_MS


def event(time_ms: int) -> bytes:
    fields = {"event_type": "click", "campaign_id": 1, "ad_id": 1, "advertiser_id": 1, "publisher_id": 1}
    return json.dumps(fields | {"event_id": "e", "event_time": time_ms}).encode()


def verdict(timestamp_ms: int, time_ms: int, *, by_broker: bool = False) -> Any:
    references = log_time.reference_times(np.array([timestamp_ms]), NOW)
    latest = log_time.latest_event_times(references, np.array([by_broker]), NOW)
    rejected = decode_events(Values.of([event(time_ms)]), references, latest_ms=latest).rejected
    return rejected[0].reason if rejected else "valid"


@pytest.mark.parametrize(
    ("timestamp_ms", "time_ms", "right", "why"),
    [
        (NOW, NOW, "valid", "the usual case"),
        (NOW + YEARS_MS, NOW, Reason.BAD_VALUE, "more than two years behind its own timestamp"),
        (NOW + 300 * DAY_MS, NOW, "valid", "less than two years behind its own timestamp"),
        (NOW + YEARS_MS, NOW + YEARS_MS, Reason.FROM_THE_FUTURE, "it would end its partition's watermark"),
        (
            NOW + 300 * DAY_MS,
            NOW + 20 * MINUTE_MS,
            "valid",
            "its own timestamp allows it, and clocks may disagree so far",
        ),
        (NOW - DAY_MS, NOW, Reason.FROM_THE_FUTURE, "ahead of its own timestamp, whatever came before"),
        (NOW // 1000, NOW, Reason.FROM_THE_FUTURE, "a timestamp in seconds"),
        (-1, NOW, "valid", "no timestamp: judged by the clock"),
        (-1, NOW + 11 * MINUTE_MS, Reason.FROM_THE_FUTURE, "no timestamp: judged by the clock"),
    ],
)
def test_each_event_is_judged_by_its_own_timestamp(timestamp_ms: int, time_ms: int, right: Any, why: str) -> None:
    assert verdict(timestamp_ms, time_ms) == right, why


def test_timestamps_of_the_broker_are_not_compared_with_the_clock() -> None:
    assert verdict(NOW + DAY_MS, NOW + DAY_MS + MAX_AHEAD_MS, by_broker=True) == "valid"
    assert verdict(NOW + DAY_MS, NOW + DAY_MS + MAX_AHEAD_MS + 1, by_broker=True) == Reason.FROM_THE_FUTURE


def turns(generations: list[int], parts: list[int]) -> log_time.Turns:
    """Fold generations in batches that end at `parts`."""
    begun: log_time.Turns = ()
    numbers: Ints = np.array(generations, np.int64)
    for start, stop in zip([0, *parts], [*parts, len(generations)], strict=True):
        begun = log_time.turns_after(begun, np.arange(start, stop), numbers[start:stop])
    return begun


@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.sets(st.integers(0, 40)))
def test_the_starts_of_generations_do_not_depend_on_the_size_of_batches(steps: list[int], cuts: set[int]) -> None:
    generations = np.cumsum([step // 6 for step in steps]).tolist()
    parts = sorted(cut for cut in cuts if cut <= len(steps))
    begun = turns(generations, parts)
    expected = [(g, generations.index(g)) for g in sorted(set(generations))][-log_time.KEPT_TURNS :]
    assert list(begun) == expected
    first = begun[0][1]
    after = np.arange(first, len(generations))
    assert log_time.generations_at(begun, after).tolist() == generations[first:]


def test_a_position_survives_encoding_as_metadata() -> None:
    position = Position(12, 5, NOW, ((3, 4), (5, 6)), "id", 7, 2)
    assert Position.committed(position.log_offset, position.metadata()) == position
    assert Position.committed(12, '{"v":1,"wm":5,"lt":6}') == Position(12, 5, 6)
    assert Position.committed(12, "") is None


def test_a_log_time_that_an_older_version_took_from_a_wrong_timestamp_is_discarded() -> None:
    assert Position(1, 2, NOW + YEARS_MS, ((1, 1),)).at_most(NOW) == Position(1, 2, NOW)
    assert Position(1, 2, NOW, ((1, 1),)).at_most(NOW) == Position(1, 2, NOW, ((1, 1),))
