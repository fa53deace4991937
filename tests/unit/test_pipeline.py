"""What operators see of the pipeline: rates of counters that restart, and the state of each process."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from infra.settings import Settings
from query.pipeline import OwnStack, PipelineReader, processes_of
from query.rates import WINDOW_S, Rates
from query.status import UNKNOWN_STATUS


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 1000), st.booleans()), min_size=1, max_size=30))
def test_a_rate_is_the_growth_since_a_restart_within_the_window(steps: list[tuple[int, int, bool]]) -> None:
    rates, at, count, history = Rates(), 0, 5_000, list[tuple[int, int]]()
    for seconds, grown, restarts in steps:
        at, count = at + seconds, (0 if restarts else count + grown)
        history = [*([] if history and count < history[-1][1] else history), (at, count)]
        rates.add({"a": (at, count)})
        # By hand: from the last look before the window, or the first there is, to now.
        before = [look for look in history[:-1] if look[0] <= at - WINDOW_S]
        first = before[-1] if before else history[0]
        expected = None if first == history[-1] else (count - first[1]) / (at - first[0])
        assert rates.of("a") == expected
        assert rates.of("b") is None


def test_a_counter_that_was_not_counted_again_and_one_that_is_gone_have_no_new_rate() -> None:
    rates = Rates()
    for at in (0.0, 0.0, 2.0):
        rates.add({"shown/0": (at, 10), "shown/1": (at, int(10 * at)), "showing": (at, int(at))})
    assert (rates.total("shown/"), rates.of("showing"), rates.total("archived")) == (10.0, 1.0, None)
    rates.add({"shown/0": (4.0, 30)})
    assert rates.total("shown/") == 5.0


def _status(at_ms: int, messages: int, copies: int) -> dict[str, Any]:
    counts = {"messages": messages, "rejected": 1, "counted": messages - copies - 1, "copies": copies, "too_late": 0, "shed": 0, "doubt": 0, "bloom_positives": 3, "bloom_false": 1}  # fmt: skip
    worker = {"worker": "ingest-0", "at_ms": at_ms, "counts": counts, "partitions": {"1": {"watermark_ms": 0}}}
    # One of the version before has no counts.
    former = {"worker": "ingest-1", "partitions": {}}
    return UNKNOWN_STATUS | {
        "ingest_workers": [worker, former], "counts": counts, "partitions": {"ad-events": [5, 7]}, "arrived": 10 * messages,
        "shards": [{"lag_s": 0.5, "watermark": None, "events": messages}, {"lag_s": None, "watermark": None, "events": None}],
    }  # fmt: skip


def test_rates_come_from_two_looks_and_one_look_serves_all_of_a_second() -> None:
    statuses = iter([_status(1_000, 100, 10), _status(3_000, 300, 50)])
    looks = itertools.chain([0.0, 0.0], [0.5], [2.0, 2.0])
    reader = PipelineReader(
        Settings.model_validate({}), OwnStack(None), lambda _: next(statuses), monotonic=looks.__next__
    )
    first = reader.read()
    assert set(first["rates"].values()) == {None}
    assert first["dedup"] == {"first": 89, "copies": 10, "doubt": 0, "bloom_positives": 3, "bloom_false": 1}
    assert reader.read() is first
    second = reader.read()
    assert second["rates"] == {
        "events": 1000.0, "ingest": 100.0, "first": 80.0, "copies": 20.0, "doubt": 0.0, "too_late": 0.0, "rejected": 0.0,
        "stream": 100.0, "archive": None,
    }  # fmt: skip
    assert second["lag"] == {
        "ingest": [
            {"partition": 0, "messages": 5, "watermark": None},
            {"partition": 1, "messages": 7, "watermark": "1970-01-01T00:00:00Z"},
        ],
        "stream": [
            {"partition": 0, "seconds": 0.5, "watermark": None},
            {"partition": 1, "seconds": None, "watermark": None},
        ],
        "archive": [],
    }


def test_a_process_waits_or_has_stopped_for_a_reason() -> None:
    status = _status(0, 10, 0) | {
        "waits": {"stream-0": {"redis": "Redis: away"}, "stream-1": {"reach": "reach: a bug"}},
        "stopped_workers": {"ingest-2": "a hole"},
    }
    taken = {"pid": 7, "cpu_s": 1.0, "rss_mb": 30}
    processes = processes_of(status, {"kafka": taken, "query-0": {}, "stream-0": taken})
    assert [(p["name"], p["kind"], p["state"]) for p in processes] == [
        ("ingest-0", "ingest", "running"), ("ingest-1", "ingest", "running"), ("ingest-2", "ingest", "stopped"),
        ("kafka", "kafka", "running"), ("query-0", "query", "stopped"), ("stream-0", "stream", "waiting"),
        ("stream-1", "stream", "running"),
    ]  # fmt: skip
    assert {p["why"] for p in processes} - {None} == {
        "a hole", "Redis: away", "reach: a bug", "it is not running; the supervisor starts it again",
    }  # fmt: skip
    assert processes[3] == {"name": "kafka", "kind": "kafka", "state": "running", "why": None} | taken


def test_nothing_is_known_while_nothing_reports() -> None:
    reader = PipelineReader(Settings.model_validate({}), OwnStack(None), lambda _: UNKNOWN_STATUS)
    status = reader.read()
    assert (status["processes"], status["lag"]) == ([], {"ingest": [], "stream": [], "archive": []})
    assert set(status["dedup"].values()) == set(status["rates"].values()) == {None}
