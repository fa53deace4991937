"""`adclick debug`: places, decoded messages, and the list of fault points."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra import faults
from infra.clock import iso
from infra.errors import UserError
from infra.settings import Settings
from ingest import blocks
from ingest.blocks import SourceRange
from ingest.events import COUNTRY_CODE, DEVICE_CODE
from ingest.partials import KEYS, SUMS, WINDOW, Partials
from stream import chunks
from stream.chunks import CHANGED, ChunkHeader
from stream.closing import Closing
from stream.readable_messages import content_of, parse_place

ROOT = Path(__file__).parents[2]
MINUTE_MS = 1_795_132_800_000
SETTINGS = Settings.model_validate({"namespace": "own_"})


@dataclass(frozen=True)
class Message:
    """A message as the Kafka client gives it."""

    _value: bytes | None
    _headers: Any = None

    def value(self) -> bytes | None:
        return self._value

    def offset(self) -> int:
        return 7

    def headers(self) -> Any:
        return self._headers


def rows(**more: int) -> Partials:
    columns = {"advertiser_id": 2, "campaign_id": 7, "ad_id": 70, "publisher_id": 44} | dict.fromkeys(SUMS, 0)
    columns |= {"country": COUNTRY_CODE["DE"], "device": DEVICE_CODE["mobile"], "clicks": 3} | more
    return Partials.of({WINDOW: np.array([MINUTE_MS]), **{name: np.array([n]) for name, n in columns.items()}})


@pytest.mark.parametrize(
    ("text", "topic", "partition", "offset"),
    [
        ("ad-blocks/3", "own_ad-blocks", 3, None),
        ("ad-blocks/3/17", "own_ad-blocks", 3, 17),
        ("own_ad-events-dead/0/0", "own_ad-events-dead", 0, 0),
    ],
)
def test_a_place_is_parsed_with_or_without_the_namespace(
    text: str, topic: str, partition: int, offset: int | None
) -> None:
    place = parse_place(text, SETTINGS)
    assert (place.topic, place.partition, place.offset) == (topic, partition, offset)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("ad-blocks", "not TOPIC.PARTITION"), ("ad-blox/0", "no topic"), ("ad-blocks/4", "partitions 0 to 3"), ("ad-blocks/0/x", "not TOPIC.PARTITION")],
)  # fmt: skip
def test_an_invalid_place_is_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_place(text, SETTINGS)


def test_a_block_shows_its_source_ranges_and_rows_by_name() -> None:
    ranges = (SourceRange(1, 100, 200, MINUTE_MS, False),)
    (value,) = blocks.encode_block(blocks.split_rows(rows().without_zero_sums().arrow()), ranges, MINUTE_MS)
    content = content_of(parse_place("ad-blocks/0", SETTINGS), Message(value), 20)
    assert content.summary == "1 rows, part 1 of 1, source 1/[100, 200)"
    assert content.header["sent_at_ms"] == iso(MINUTE_MS)
    assert content.rows[0]["window_ms"] == iso(MINUTE_MS)
    assert list(content.rows[0]) == [*KEYS, *SUMS]
    assert (content.rows[0]["country"], content.rows[0]["device"]) == ("DE", "mobile")
    assert {name: content.rows[0][name] for name in SUMS} == dict.fromkeys(SUMS, 0) | {"clicks": 3}


def test_a_chunk_shows_its_sequence_input_and_watermark() -> None:
    header = ChunkHeader(chunks.SCHEMA_VERSION, 12, 10, 14, Closing(closed_ms=MINUTE_MS), None, 0, shard=3, base=True)
    ((_, value),) = chunks.encode(rows(**{CHANGED: 1}), header)
    content = content_of(parse_place("ad-minute-state/0", SETTINGS), Message(value), 0)
    assert content.summary == f"base 12 of shard 3, part 1 of 1, 1 rows, input [10, 14), closed until {iso(MINUTE_MS)}"
    assert content.rows == []
    assert "late_clicks" not in blocks.unpack_rows(value)[0].column_names
    (row,) = content_of(parse_place("ad-minute-state/0", SETTINGS), Message(value), 5).rows
    assert (row["clicks"], row["late_clicks"], row[CHANGED]) == (3, 0, 1)


def test_a_dead_letter_shows_its_reason_and_bytes() -> None:
    message = Message(b'{"event_id": 5}\xff', [("reason", b"bad-value"), ("detail", b"event_id")])
    content = content_of(parse_place("ad-events-dead/0", SETTINGS), message, 20)
    assert content.summary == 'bad-value: {"event_id": 5}\\xff'
    assert content.header == {"reason": "bad-value", "detail": "event_id"}


def test_a_message_without_a_value_is_a_tombstone() -> None:
    content = content_of(parse_place("ad-day-state/0", SETTINGS), Message(None), 20)
    assert content.summary.startswith("tombstone")


def test_the_list_of_fault_points_is_that_of_the_code() -> None:
    sources = [f for p in ("infra", "ingest", "stream", "batch", "query") for f in (ROOT / p).rglob("*.py")]
    code = "\n".join(f.read_text() for f in sources)
    calls = re.findall(r"faults\.point\(([^\n]*)", code)
    literal = {name for call in calls for name in re.findall(r'(?<!f)"([a-z.-]+\.[a-z]+)"', call)}
    by_stage = re.findall(r'faults\.point\(f"\{self\.stage\.name\}\.([a-z]+)"', code)
    by_producer = re.findall(r'f"\{kind\}\.([a-z]+)"', code)
    stages = {
        f"{stage}.{point}" for stage in ("minute", "hour", "day", "insight") for point in (*by_stage, *by_producer)
    }
    producers = {f"{kind}.{point}" for kind in ("ingest", "dead-letters") for point in by_producer}
    assert by_stage and by_producer and all('"' in c or "self._" in c for c in calls)
    assert set(faults.POINTS) == literal | stages | producers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kill@ingest.recoded", "no fault point ingest.recoded.*did you mean ingest.recorded"),
        ("kill@nope", "no fault point nope.*adclick debug fault-points"),
        ("kill ingest.recorded", "not a fault point.*kill@POINT"),
        ("kill@ingest.recorded:0", "not a fault point"),
    ],
)
def test_a_fault_that_could_never_be_reached_is_refused(text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        faults.armed(text)
