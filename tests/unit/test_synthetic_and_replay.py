"""The truth of generated events, checked by a plain simulation of the contract; and what replay does to a line."""

from __future__ import annotations

import errno
import json
import os
import threading
import zlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from infra import rfc3339
from infra.cli.main import cli
from infra.clock import HOUR_MS, MINUTE_MS
from infra.errors import UserError
from infra.kafka.event_producer import EventProducer
from ingest import events
from ingest.decoding import json_fields
from ingest.replay.replay_batch import ReplayBatch
from ingest.replay.sender import EventTimeSchedule, Pace, Sender
from ingest.replay.shifting import Shift, find_shift, shift_event
from ingest.synthetic import command, truth_file
from ingest.synthetic.generator import DIMENSIONS, Spec, SyntheticEvents, generate_events

START = 1_795_132_800_000
SPEC = Spec(
    events=20_000,
    seed=3,
    start_ms=START,
    span_ms=2 * HOUR_MS,
    campaigns=40,
    duplicates=0.05,
    late=0.03,
    malformed=0.01,
    future=0.002,
)


@pytest.fixture(scope="module")
def traffic() -> SyntheticEvents:
    return generate_events(SPEC)


def simulate(
    traffic: SyntheticEvents, partitions: int
) -> tuple[dict[tuple[object, ...], list[int]], list[tuple[int, str]]]:
    """The contract, one message at a time, over partitions chosen by key: counts per minute and dimensions, dead letters."""
    log_time = START + SPEC.span_ms
    seen_ids: dict[int, set[str]] = defaultdict(set)
    mark: dict[int, int] = {}
    counts: dict[tuple[object, ...], list[int]] = defaultdict(lambda: [0] * 6)
    dead: list[tuple[int, str]] = []
    for number, (line, key) in enumerate(zip(traffic.lines.to_list(), traffic.keys.to_list(), strict=True)):
        verdict = events.judge_message(line, log_time)
        if isinstance(verdict, events.Rejection):
            dead.append((number, verdict.reason.value))
            continue
        partition = zlib.crc32(key.encode()) % partitions
        if verdict.event_id in seen_ids[partition]:
            continue
        seen_ids[partition].add(verdict.event_id)
        end = (verdict.time_ms // MINUTE_MS + 1) * MINUTE_MS
        late_by = mark.get(partition, 0) - end
        mark[partition] = max(mark.get(partition, 0), verdict.time_ms - 5_000)
        if late_by > HOUR_MS:
            dead.append((number, "too-late"))
            continue
        raw = json.loads(line)
        cell = counts[(end - MINUTE_MS, *(raw[d] for d in DIMENSIONS))]
        cell[verdict.event_type] += 1
        cell[3] += verdict.cost_micros
        cell[4] += late_by > 5 * MINUTE_MS
        cell[5] += late_by > 5 * MINUTE_MS and raw["event_type"] == "click"
    return counts, dead


@pytest.mark.parametrize("partitions", [1, 4, 16])
def test_the_truth_equals_a_simulation_with_any_number_of_partitions(traffic: SyntheticEvents, partitions: int) -> None:
    counts, dead = simulate(traffic, partitions)
    measures = ("impressions", "clicks", "conversions", "spend_micros", "late_events", "late_clicks")
    columns = [f"stream_{m}" for m in measures]
    counts_in_stream = traffic.truth.counts.filter(pl.sum_horizontal(columns[:3]) > 0).select(
        "minute_ms", *DIMENSIONS, *columns
    )
    assert {row[:7]: list(row[7:]) for row in counts_in_stream.iter_rows()} == counts
    assert traffic.truth.dead.rows() == dead


def test_every_class_of_event_and_every_reason_is_generated(traffic: SyntheticEvents) -> None:
    reasons = set(traffic.truth.dead["reason"])
    assert reasons == {"too-large", "malformed", "missing-field", "bad-value", "from-the-future", "too-late"}
    late_events, late_clicks = (traffic.truth.counts[f"stream_late_{m}"].sum() for m in ("events", "clicks"))
    assert late_events > 20
    assert 0 < late_clicks < late_events
    assert traffic.truth.counts["stream_late"].sum() > traffic.truth.counts["stream_late_events"].sum()
    assert len(traffic.lines) == SPEC.events
    assert traffic.lines.n_unique() < SPEC.events


def test_the_same_seed_gives_the_same_events(traffic: SyntheticEvents) -> None:
    again = generate_events(SPEC)
    assert again.lines.equals(traffic.lines)
    assert again.truth.counts.sort(pl.all()).equals(traffic.truth.counts.sort(pl.all()))
    assert not generate_events(Spec(**{**SPEC.__dict__, "seed": 4})).lines.equals(traffic.lines)


def test_each_ad_has_one_campaign_and_each_campaign_one_advertiser(traffic: SyntheticEvents) -> None:
    pairs = traffic.truth.counts.select("ad_id", "campaign_id", "advertiser_id").unique()
    assert pairs["ad_id"].n_unique() == pairs.height
    assert pairs.select("campaign_id", "advertiser_id").unique().height == pairs["campaign_id"].n_unique()


def test_the_truth_file_is_read_back_unchanged(traffic: SyntheticEvents, tmp_path: Path) -> None:
    truth_file.save(traffic.truth, tmp_path / "truth.ndjson")
    back = truth_file.load(tmp_path / "truth.ndjson")
    assert back.counts.select(traffic.truth.counts.columns).sort(pl.all()).equals(traffic.truth.counts.sort(pl.all()))
    assert back.dead.equals(traffic.truth.dead)


def generate(*words: str) -> None:
    cli.main(["generate", "-q", *words], standalone_mode=False)


@pytest.mark.parametrize("option", ["--out", "--truth"])
@pytest.mark.parametrize(
    ("path", "why"), [("/dev/full", "No space left"), (".", "directory"), ("gone/x", "No such file")]
)
def test_an_output_that_cannot_be_written_is_named_with_the_reason(
    option: str, path: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = ["--out", "events"] if option == "--truth" else []
    with pytest.raises(UserError, match=why) as refusal:
        generate("--events", "100", *other, option, path)
    assert refusal.value.message.startswith(f"{path} cannot be written")


def test_a_file_that_could_not_be_written_whole_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(traffic: SyntheticEvents, out: Path) -> None:
        out.write_bytes(b'{"event_id":"a')
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(command, "write_lines", fail)
    with pytest.raises(UserError, match="No space left"):
        generate("--events", "100", "--out", str(tmp_path / "events"))
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_takes_the_events_as_a_file_does(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: generate("--events", "500", "--out", str(tmp_path / "pipe")))
    writer.start()
    piped = (tmp_path / "pipe").read_bytes()
    writer.join()
    generate("--events", "500", "--out", str(tmp_path / "file"))
    assert piped == (tmp_path / "file").read_bytes()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--events", "10000000000000", "--out", "x"], "memory"),
        (["--events", "9", "--out", "x", "--truth", "./x"], "same file"),
    ],
)
def test_an_impossible_request_is_refused_before_a_file_is_made(
    words: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=why):
        generate(*words)
    assert list(tmp_path.iterdir()) == []


def test_keys_are_the_event_ids(traffic: SyntheticEvents) -> None:
    lines = traffic.lines.to_list()
    keys = ReplayBatch.of(lines).keys
    for line, key, number in zip(lines, keys, range(len(lines)), strict=True):
        verdict = events.judge_message(line, START + SPEC.span_ms)
        if isinstance(verdict, events.Event):
            assert key == verdict.event_id.encode(), number


def moved(lines: list[bytes], shift: Shift) -> list[bytes]:
    return [shift_event(line, *json_fields.read_id_and_time(line), shift) for line in lines]


def test_shifting_moves_every_readable_time_and_renames_copies_alike(traffic: SyntheticEvents) -> None:
    lines = traffic.lines.to_list()
    shift = 90 * MINUTE_MS
    names: dict[str, str] = {}
    late = START + SPEC.span_ms + shift
    for old, new in zip(lines, moved(lines, Shift(shift, "r")), strict=True):
        before, after = events.judge_message(old, late - shift), events.judge_message(new, late)
        if isinstance(before, events.Rejection):
            assert isinstance(after, events.Rejection)
            assert before.reason == after.reason
            continue
        assert isinstance(after, events.Event)
        assert after.time_ms - before.time_ms == shift
        assert after.event_id != before.event_id
        assert names.setdefault(before.event_id, after.event_id) == after.event_id
    assert len(set(names.values())) == len(names)


IDS = {
    "dollar and digit": [f"a$b{n}" for n in range(100)],
    "dollar and braces": [f"${{AUCTION_ID}}-{n}" for n in range(100)],
    "groups of a pattern": ["${0}", "${1}", "$0", "$1", "$$", "\\1", "\\g<0>", "\\0", "${old}"],
    "quotes and backslashes": ['a"b', "a\\b", "a\\\\b", '"', "\\", "a/b", "'"],
    "format braces": ["{}", "{0}", "{new}", "%s", "%(id)s"],
    "control characters": ["a\tb", "a\nb", "a\0b", "\x7f"],
    "beyond ASCII": ["café", "cafe\u0301", "\u00e9" * 32, "\U0001f44d" * 16, "\U0001f44d" * 15 + "abcd"],
    "at the limit": ["x" * 64, "x" * 63 + "y", "x" * 63, "x" * 40 + "y" * 24, "x" * 56, "x" * 57],
    "derived before": ["a", "a~5", "a~5~3", "a~3", "~", "~5", "a~90.r", "a~90.r~90.r"],
}


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("spelled", [json.dumps, lambda x: json.dumps(x, ensure_ascii=False)], ids=["escaped", "plain"])
def test_distinct_ids_stay_distinct_and_valid_when_they_are_moved(kind: str, spelled: Any) -> None:
    ids = IDS[kind]
    lines = [f'{{"event_id":{spelled(name)},"event_time":{START}}}'.encode() for name in ids]
    new = [json.loads(line) for line in moved(lines + lines, Shift(90 * MINUTE_MS, "r"))]
    names = [event["event_id"] for event in new]
    assert names[: len(ids)] == names[len(ids) :]
    assert len(set(names)) == len(ids)
    assert all(new != old for new, old in zip(names, ids, strict=False))
    assert all(0 < len(name.encode()) <= 64 for name in names)
    assert {event["event_time"] for event in new} == {START + 90 * MINUTE_MS}


def test_lines_without_a_valid_id_or_time_are_not_shifted() -> None:
    lines = [
        b'{"event_id":12,"event_time":1}', b'{"event_id":"","event_time":1}', b'{"event_time":1}', b'{"event_id":"a"}',
        b'{"event_id":"a","event_time":"yesterday"}', b'{"event_id":"a","event_time":1.5}', b"[]", b"{", b"\xff",
        b'{"event_id":"' + b"x" * 65 + b'","event_time":1}', b'{"event_id":"\\ud800","event_time":1}',
        b'{"event_id":"a","event_time":1,"n":' + b"[" * 1000 + b"]" * 1000 + b"}",
        b'{"event_id":"a","event_time":' + b"1" * 5000 + b"}", b'{"event_id":"a","event_time":%d}' % (2**63),
        b'{"event_id":"a","event_time":%d}' % (2**63 - 1), b'{"event_id":"a","event_time":-%d}' % (2**63),
    ]  # fmt: skip
    assert moved(lines, Shift(MINUTE_MS, "r")) == lines


def test_a_text_time_is_moved_and_every_other_field_stays_as_it_was_written() -> None:
    line = b'{"n": 1.0,\t"event_id" :\t"a" , "event_time": "2026-11-20T00:00:00+01:00", "x": {"event_id":"b","y":1e3}}'
    (new,) = moved([line], Shift(MINUTE_MS, "r"))
    assert json.loads(new)["event_time"] == rfc3339.time_ms_of("2026-11-19T23:01:00Z")
    assert b'"n":1.0' in new
    assert b'{"event_id":"b","y":1e3}' in new


def test_a_long_id_stays_within_its_limit_when_it_is_shifted() -> None:
    line = json.dumps({"event_id": "x" * 64, "event_time": START, "n": 1}).encode()
    other = json.dumps({"event_id": "x" * 63 + "y", "event_time": START, "n": 1}).encode()
    ids = [json.loads(m)["event_id"] for m in moved([line, other, line], Shift(MINUTE_MS, "r"))]
    assert ids[0] == ids[2] != ids[1]
    assert max(map(len, ids)) <= 64


def test_events_far_off_do_not_count_for_the_shift_to_now() -> None:
    times = [*range(START, START + 3_600_000, 1_000), 4_102_444_800_000, START - 10**10]
    now = START + 10 * HOUR_MS + 123
    shift = find_shift(now, times)
    assert shift is not None
    assert shift.shift_ms % MINUTE_MS == 0
    assert 0 <= now - (START + 3_599_000 + shift.shift_ms) < MINUTE_MS


@pytest.mark.parametrize("distance_ms", [0, 1, 59_999, -1], ids=str)
def test_a_second_replay_has_new_ids_even_within_a_minute_or_without_a_shift(distance_ms: int) -> None:
    line = json.dumps({"event_id": "a", "event_time": START}).encode()
    first, second = (find_shift(START + distance_ms + later, [START]) for later in (0, 1))
    assert first is not None
    assert second is not None
    ids = {json.loads(moved([line], shift)[0])["event_id"] for shift in (first, second)}
    assert len(ids) == 2
    assert "a" not in ids


def test_events_without_a_time_cannot_be_moved() -> None:
    assert find_shift(START, []) is None


def due(*batches: list[int | None]) -> list[list[int]]:
    schedule = EventTimeSchedule()
    return [schedule.due_ms(times).tolist() for times in batches]


@pytest.mark.parametrize(
    "times",
    [[None, None], [None, START, None], [START, 2**62, -(2**62), START], [], [START, START - HOUR_MS]],
    ids=["none", "one", "far off", "empty", "late"],
)
def test_real_time_pace_gives_each_line_a_due_time(times: list[int | None]) -> None:
    first, second = due(times, times)
    assert len(first) == len(second) == len(times)
    assert [*first, *second] == sorted([*first, *second])
    assert all(0 <= at <= HOUR_MS for at in first + second)


def test_real_time_pace_keeps_distances_beside_late_and_future_events() -> None:
    steady: list[int | None] = [START + n * MINUTE_MS for n in range(100)]
    (times,) = due([*steady[:50], START - 6 * HOUR_MS, None, 4_102_444_800_000, *steady[50:]])
    assert {b - a for a, b in pairwise(times[10:50])} == {MINUTE_MS}
    assert times[50:53] == [times[49]] * 3
    assert times[-1] - times[49] == 50 * MINUTE_MS
    late_first: list[int | None] = [START - 6 * HOUR_MS, *(START + n for n in range(100))]
    assert due(late_first)[0][-1] < 1_000


class FullQueue(EventProducer):
    """A producer without Kafka, whose queue is full until it is drained."""

    def __init__(self) -> None:
        self.waiting, self.sent = 400_000, list[bytes]()
        self.asked_while_full = threading.Event()

    def flush(self, _timeout_s: float) -> int:
        if self.waiting:
            self.asked_while_full.set()
        return self.waiting

    def send(self, _topic: str, _keys: Sequence[bytes | None], values: Sequence[bytes | None]) -> None:
        assert not self.waiting, "this would block"
        self.sent += [value for value in values if value is not None]


@pytest.mark.parametrize("stopped", [True, False])
def test_a_sender_waits_for_room_in_the_queue_and_can_be_stopped_meanwhile(stopped: bool) -> None:
    queue, stop = FullQueue(), threading.Event()
    sender = Sender(queue, "events", Pace(), stop)
    sending = threading.Thread(target=sender.send, args=(ReplayBatch.of([b"{}"] * 5), lambda _count: None))
    sending.start()
    assert queue.asked_while_full.wait(60)
    if stopped:
        stop.set()
    else:
        queue.waiting = 0
    sending.join(60)
    assert not sending.is_alive()
    assert len(queue.sent) == sender.sent == (0 if stopped else 5)


def test_a_slice_of_large_events_is_no_larger_in_bytes_than_one_of_small_events() -> None:
    queue, slices = FullQueue(), list[int]()
    queue.waiting = 0
    sender = Sender(queue, "events", Pace(), threading.Event())
    line = b"x" * (4 << 20)
    sender.send(ReplayBatch([line] * 40, [None] * 40, [None] * 40), slices.append)
    assert sum(slices) == 40
    assert max(slices) * len(line) <= 64 << 20
