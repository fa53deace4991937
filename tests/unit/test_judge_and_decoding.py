"""Every reason on every field, and the fast path against the strict one."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infra import rfc3339
from infra.columnar.columns import Values
from infra.columnar.siphash import siphash
from ingest import events
from ingest.decoding import decode as decoding
from ingest.decoding.decode import NO_USER, decode_events
from ingest.dedup.digest import digest_ids
from ingest.events import Event, Reason, Rejection, judge_message

NOW = 1_795_000_000_000
USER_KEY = bytes(range(16))
GOOD: dict[str, Any] = {
    "event_id": "a1", "event_type": "click", "event_time": NOW - 5, "campaign_id": 7, "ad_id": 8, "advertiser_id": 9,
    "publisher_id": 10, "country": "DE", "device": "ctv", "user_id": "u", "cost_micros": 11,
}  # fmt: skip
LEAVE_OUT = object()
BAD_IDS: list[Any] = [-1, 2**63, "7", 1.0, True, [], 10**30]


def message(**changes: Any) -> bytes:
    return json.dumps({k: v for k, v in (GOOD | changes).items() if v is not LEAVE_OUT}).encode()


def verdict_of(value: bytes | None) -> Event | Rejection:
    """The verdict of both paths, which must be the same."""
    strict = judge_message(value, NOW)
    assert_same([value], [strict])
    return strict


def hashed(texts: list[str]) -> list[int]:
    values = siphash(Values.of([text.encode() for text in texts]), USER_KEY)[:, 0] >> np.uint64(1)
    return [int(value) for value in values]


def assert_same(values: list[bytes | None], strict: list[Event | Rejection]) -> None:
    decoded = decode_events(Values.of(values), np.full(len(values), NOW, np.int64), USER_KEY)
    expected = [(row, v) for row, v in enumerate(strict) if isinstance(v, Event)]
    assert decoded.rejected == {row: v for row, v in enumerate(strict) if isinstance(v, Rejection)}
    names = [f.name for f in dataclasses.fields(Event) if f.name not in ("event_id", "user_id")]
    events = decoded.events
    assert [
        (int(events["row"][i]), *(int(events[name][i]) for name in names), (events.ids[i] or b"").decode())
        for i in range(len(events))
    ] == [(row, *(getattr(event, name) for name in names), event.event_id) for row, event in expected]
    users = [NO_USER if event.user_id is None else hashed([event.user_id])[0] for _, event in expected]
    assert events["user"].tolist() == users
    assert events.digests.tobytes() == digest_ids(Values.of([e.event_id.encode() for _, e in expected])).tobytes()


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"event_id": ""}, "event_id"),
        ({"event_id": "x" * 65}, "event_id"),
        ({"event_id": "ü" * 33}, "event_id"),
        ({"event_id": 12}, "event_id"),
        ({"event_id": {}}, "event_id"),
        ({"event_type": "view"}, "event_type"),
        ({"event_type": 1}, "event_type"),
        ({"event_time": "yesterday"}, "event_time"),
        ({"event_time": "2026-11-20T10:00:00"}, "event_time"),
        ({"event_time": "2026-02-30T10:00:00Z"}, "event_time"),
        ({"event_time": "2026-11-20T10:00:60Z"}, "event_time"),
        ({"event_time": "1970-01-01T00:00:00Z"}, "event_time"),
        ({"event_time": 0}, "event_time"),
        ({"event_time": -1}, "event_time"),
        ({"event_time": True}, "event_time"),
        ({"event_time": 1.5e12}, "event_time"),
        ({"event_time": NOW - events.MAX_BEHIND_MS - 1}, "event_time"),
        *[({name: bad}, name) for name in events.ID_FIELDS for bad in BAD_IDS],
        ({"country": "XX"}, "country"),
        ({"country": "de"}, "country"),
        ({"country": 1}, "country"),
        ({"device": "phone"}, "device"),
        ({"device": False}, "device"),
        ({"user_id": "u" * 129}, "user_id"),
        ({"user_id": 5}, "user_id"),
        ({"cost_micros": -1}, "cost_micros"),
        ({"cost_micros": 10**12 + 1}, "cost_micros"),
        ({"cost_micros": "1"}, "cost_micros"),
        ({"cost_micros": 0.5}, "cost_micros"),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], detail: str) -> None:
    assert verdict_of(message(**changes)) == Rejection(Reason.BAD_VALUE, detail)


@pytest.mark.parametrize("name", events.REQUIRED)
@pytest.mark.parametrize("how", [LEAVE_OUT, None])
def test_a_missing_or_null_required_field_is_named(name: str, how: Any) -> None:
    assert verdict_of(message(**{name: how})) == Rejection(Reason.MISSING_FIELD, name)


@pytest.mark.parametrize(
    "value",
    [
        None, b"", b" ", b"7", b'"text"', b"null", b"true", b"[]", b"[" + message() + b"]", b"{", message()[:-1],
        message() + b"}", message() + b"\n" + message(), b"\xff" + message(), message().replace(b"DE", b"D\xff"),
        b"\xef\xbb\xbf" + message(), message().replace(b'"u"', b'"\x01"'), message().replace(b"11}", b"NaN}"),
        message().replace(b"11}", b"011}"), message().replace(b"11}", b"+11}"), message().replace(b'"', b"'"),
        b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}", b"[" * 10_000,
    ],
)  # fmt: skip
def test_a_value_that_is_no_json_object_is_malformed(value: bytes | None) -> None:
    verdict = verdict_of(value)
    assert isinstance(verdict, Rejection)
    assert verdict.reason == Reason.MALFORMED


def test_two_megabytes_are_too_large_whatever_they_contain() -> None:
    for value in (message(note="x" * 2_000_000), b"\xff" * 2_000_000):
        verdict = verdict_of(value)
        assert isinstance(verdict, Rejection)
        assert verdict.reason == Reason.TOO_LARGE


def test_a_value_may_have_up_to_64_kib() -> None:
    room = events.MAX_VALUE_BYTES - len(message(note=""))
    assert isinstance(verdict_of(message(note="x" * room)), Event)
    assert isinstance(verdict_of(message(note="x" * (room + 1))), Rejection)


@pytest.mark.parametrize("ahead", [events.MAX_AHEAD_MS + 1, 10**15, 2**62, 10**19])
def test_more_than_ten_minutes_ahead_is_from_the_future(ahead: int) -> None:
    verdict = verdict_of(message(event_time=NOW + ahead))
    assert isinstance(verdict, Rejection)
    assert verdict.reason == Reason.FROM_THE_FUTURE
    assert isinstance(verdict_of(message(event_time="9999-12-31T23:59:59Z")), Rejection)
    assert isinstance(verdict_of(message(event_time=NOW + events.MAX_AHEAD_MS)), Event)


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"country": None}, "country", events.DEFAULT_COUNTRY),
        ({"country": LEAVE_OUT}, "country", events.DEFAULT_COUNTRY),
        ({"device": LEAVE_OUT}, "device", events.DEFAULT_DEVICE),
        ({"user_id": None}, "user_id", None),
        ({"cost_micros": LEAVE_OUT}, "cost_micros", 0),
        ({"cost_micros": 10**12}, "cost_micros", 10**12),
        ({"campaign_id": 2**63 - 1}, "campaign_id", 2**63 - 1),
        ({"campaign_id": 0}, "campaign_id", 0),
        ({"event_id": "ü" * 32}, "event_id", "ü" * 32),
        ({"event_time": NOW - events.MAX_BEHIND_MS}, "time_ms", NOW - events.MAX_BEHIND_MS),
        ({"event_time": "2026-11-18T11:06:40.123456Z"}, "time_ms", NOW + 123),
        ({"unknown": {"deep": [1, {"a": None}]}}, "campaign_id", 7),
    ],
)
def test_allowed_values_are_accepted_unchanged(changes: dict[str, Any], field: str, value: Any) -> None:
    verdict = verdict_of(message(**changes))
    assert isinstance(verdict, Event)
    assert getattr(verdict, field) == value


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T19:00:00.5-05:00", 500),
        ("2026-11-20T00:00:00.123456789Z", 1_795_132_800_123),
        ("2026-11-20t00:00:00z", 1_795_132_800_000),
        ("2026-11-20 00:00:00Z", None),
        ("2026-11-20T00:00:00", None),
        ("2026-11-20T24:00:00Z", None),
        ("2026-11-20T00:00:00+24:00", None),
        ("2026-11-20T00:00:00+0100", None),
        ("٢٠٢٦-11-20T00:00:00Z", None),
    ],
)
def test_event_times_are_parsed_as_rfc_3339(text: str, ms: int | None) -> None:
    assert rfc3339.time_ms_of(text) == ms


def test_the_last_of_duplicate_keys_wins() -> None:
    twice = message()[:-1] + b', "campaign_id": 70}'
    verdict = verdict_of(twice)
    assert isinstance(verdict, Event)
    assert verdict.campaign_id == 70


_texts = st.one_of(
    st.text(max_size=12), st.sampled_from(["DE", "mobile", "click", "2026-11-18T11:00:00Z", "\ud800", 'a"b', "\\"])
)
_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 2**64), st.integers(NOW - 10**7, NOW + 10**6),
    st.floats(allow_nan=False, allow_infinity=False), _texts,
)  # fmt: skip
_values = st.one_of(
    _scalars, st.lists(_scalars, max_size=2), st.dictionaries(st.text(max_size=3), _scalars, max_size=2)
)
_changes = st.dictionaries(st.sampled_from([*events.FIELDS, "extra", "event id"]), _values, max_size=3)


@st.composite
def _messages(draw: st.DrawFn) -> bytes | None:
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.one_of(st.none(), st.binary(max_size=30)))
    fields = list((GOOD | draw(_changes)).items())
    if draw(st.booleans()):
        fields = draw(st.permutations(fields))
    dropped = draw(st.sets(st.sampled_from(events.FIELDS), max_size=1))
    remaining = [(k, v) for k, v in fields if k not in dropped]
    comma, colon = draw(st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : "), (",\n", ":")]))
    ascii_only = draw(st.booleans())
    parts = [json.dumps(k) + colon + json.dumps(v, ensure_ascii=ascii_only) for k, v in remaining]
    if draw(st.integers(0, 9)) == 0 and parts:
        parts.append(parts[0])
    text = "{" + comma.join(parts) + "}"
    value = text.encode("utf-8", "surrogatepass")
    if kind == 1:
        at = draw(st.integers(0, len(value)))
        value = value[:at] + draw(st.binary(max_size=2)) + value[at + draw(st.integers(0, 2)) :]
    return value


@settings(max_examples=300, deadline=None)
@given(st.lists(_messages(), min_size=1, max_size=12))
@example([message(), None, message(event_id="b"), b"{}", message()])
@example([message(event_time="2026-11-18T11:06:40Z"), message(event_time="2026-11-18T11:06:40.5+19:59")])
def test_a_verdict_does_not_depend_on_the_rest_of_the_batch(values: list[bytes | None]) -> None:
    strict = [judge_message(v, NOW) for v in values]
    assert_same(values, strict)
    assert_same(values[::-1] * 2, strict[::-1] * 2)
    for value, verdict in zip(values, strict, strict=True):
        assert_same([value], [verdict])


def test_usual_messages_take_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    judged_one_by_one: list[int] = []
    strict = decoding._judge_each

    def spy(values: Values, rows: list[int], *rest: Any) -> Any:
        judged_one_by_one.extend(rows)
        return strict(values, rows, *rest)

    monkeypatch.setattr(decoding, "_judge_each", spy)
    values = [message(event_id=f"e{i}") for i in range(500)]
    values += [message(event_id=f"t{i}", event_time="2026-11-18T11:06:40Z") for i in range(500)]
    unread = {"note": "日本", "price": -1.5e3, "more": None, "far": [[], {}, {"a": [{"b": "\n"}, 1.5, "}"]}]}
    for i in range(250):
        event = GOOD | {"event_id": f"ü{i}", "user_id": "Zoë"} | unread
        values.append(json.dumps(event, ensure_ascii=False).encode())
        values.append(json.dumps(unread | GOOD | {"event_id": f"n{i}"}).encode())
    # One that the fast path leaves to the other.
    values.append(message(ad_id="7"))
    decode_events(Values.of(values), np.full(1501, NOW, np.int64))
    assert judged_one_by_one == [1500]
