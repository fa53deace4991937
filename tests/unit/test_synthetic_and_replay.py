"""The generator's claims, checked by a plain simulation of what the contract says; and what replay does to a line."""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from pathlib import Path

import polars as pl
import pytest

from infra.clock import HOUR_MS, MINUTE_MS
from ingest import events, replay
from ingest.synthetic import truth_file
from ingest.synthetic.generator import DIMENSIONS, Made, Spec, make
from ingest.text import as_text

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
def made() -> Made:
    return make(SPEC)


def simulate(made: Made, partitions: int) -> tuple[dict[tuple[object, ...], list[int]], list[tuple[int, str]]]:
    """The contract, one message at a time, over partitions chosen by key: counts per minute and dimensions, dead letters."""
    log_time = START + SPEC.span_ms
    seen: dict[int, set[str]] = defaultdict(set)
    mark: dict[int, int] = {}
    counts: dict[tuple[object, ...], list[int]] = defaultdict(lambda: [0] * 5)
    dead: list[tuple[int, str]] = []
    for number, (line, key) in enumerate(zip(made.lines.to_list(), made.keys.to_list(), strict=True)):
        verdict = events.judge(line, log_time)
        if isinstance(verdict, events.Rejection):
            dead.append((number, verdict.reason.value))
            continue
        partition = zlib.crc32(key.encode()) % partitions
        if verdict.event_id in seen[partition]:
            continue
        seen[partition].add(verdict.event_id)
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
    return counts, dead


@pytest.mark.parametrize("partitions", [1, 4, 16])
def test_the_truth_is_what_the_contract_says_whatever_the_partitions(made: Made, partitions: int) -> None:
    counts, dead = simulate(made, partitions)
    columns = [f"stream_{m}" for m in ("impressions", "clicks", "conversions", "spend_micros", "late_events")]
    told = made.truth.counts.filter(pl.sum_horizontal(columns[:3]) > 0).select("minute_ms", *DIMENSIONS, *columns)
    assert {row[:7]: list(row[7:]) for row in told.iter_rows()} == counts
    assert made.truth.dead.rows() == dead


def test_every_class_and_reason_is_there(made: Made) -> None:
    reasons = set(made.truth.dead["reason"])
    assert reasons == {"too-large", "malformed", "missing-field", "bad-value", "from-the-future", "too-late"}
    assert made.truth.counts["stream_late_events"].sum() > 20
    assert made.truth.counts["stream_late"].sum() > made.truth.counts["stream_late_events"].sum()
    assert len(made.lines) == SPEC.events
    assert made.lines.n_unique() < SPEC.events


def test_the_same_seed_gives_the_same_events(made: Made) -> None:
    again = make(SPEC)
    assert again.lines.equals(made.lines)
    assert again.truth.counts.sort(pl.all()).equals(made.truth.counts.sort(pl.all()))
    assert not make(Spec(**{**SPEC.__dict__, "seed": 4})).lines.equals(made.lines)


def test_each_ad_has_one_campaign_and_each_campaign_one_advertiser(made: Made) -> None:
    pairs = made.truth.counts.select("ad_id", "campaign_id", "advertiser_id").unique()
    assert pairs["ad_id"].n_unique() == pairs.height
    assert pairs.select("campaign_id", "advertiser_id").unique().height == pairs["campaign_id"].n_unique()


def test_the_truth_file_reads_back(made: Made, tmp_path: Path) -> None:
    truth_file.save(made.truth, tmp_path / "truth.ndjson")
    back = truth_file.load(tmp_path / "truth.ndjson")
    assert back.counts.select(made.truth.counts.columns).sort(pl.all()).equals(made.truth.counts.sort(pl.all()))
    assert back.dead.equals(made.truth.dead)


def test_keys_are_the_event_ids(made: Made) -> None:
    lines = made.lines.to_list()
    keys = replay.keys_of(as_text(lines))
    for line, key, number in zip(lines, keys, range(len(lines)), strict=True):
        verdict = events.judge(line, START + SPEC.span_ms)
        if isinstance(verdict, events.Event):
            assert key == verdict.event_id.encode(), number


def test_shifting_moves_every_readable_time_and_renames_copies_alike(made: Made) -> None:
    lines = made.lines.to_list()
    shift = 90 * MINUTE_MS
    moved = replay.shifted(as_text(lines), lines, shift)
    names: dict[str, str] = {}
    late = START + SPEC.span_ms + shift
    for old, new in zip(lines, moved, strict=True):
        before, after = events.judge(old, late - shift), events.judge(new, late)
        if isinstance(before, events.Rejection):
            assert isinstance(after, events.Rejection)
            assert before.reason == after.reason
            continue
        assert isinstance(after, events.Event)
        assert after.time_ms - before.time_ms == shift
        assert after.event_id != before.event_id
        assert names.setdefault(before.event_id, after.event_id) == after.event_id
    assert len(set(names.values())) == len(names)


def test_a_long_id_stays_within_its_limit_when_it_is_shifted() -> None:
    line = json.dumps({"event_id": "x" * 64, "event_time": START, "n": 1}).encode()
    other = json.dumps({"event_id": "x" * 63 + "y", "event_time": START, "n": 1}).encode()
    moved = replay.shifted(as_text([line, other, line]), [line, other, line], MINUTE_MS)
    ids = [json.loads(m)["event_id"] for m in moved]
    assert ids[0] == ids[2] != ids[1]
    assert max(map(len, ids)) <= 64


def test_the_end_of_the_events_is_found_beside_events_from_far_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "e.ndjson"
    times = [*range(START, START + 3_600_000, 1_000), 4_102_444_800_000, START - 10**10]
    file.write_text("".join(json.dumps({"event_id": str(t), "event_time": t}) + "\n\n" for t in times))
    now = START + 10 * HOUR_MS + 123
    monkeypatch.setattr(replay, "now_ms", lambda: now)
    shift = replay.shift_to_now([file])
    assert shift % MINUTE_MS == 0
    assert 0 <= now - (START + 3_599_000 + shift) < MINUTE_MS


def test_lines_are_read_whole_whatever_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_CHUNK_BYTES", 7)
    file = tmp_path / "e.ndjson"
    wanted = [b'{"a":%d}' % n for n in range(50)]
    file.write_bytes(b"\n".join(wanted) + b"\n\n\nlast \xff without an end")
    assert [line for part in replay.chunks(file) for line in part] == [*wanted, b"last \xff without an end"]
