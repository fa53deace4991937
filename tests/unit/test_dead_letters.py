"""Dead letters: any bytes and any headers can be read, and what is sent again is what was mended, once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest import dead_letters, events, json_fields
from ingest.dead_letters import Source
from tests.hostile_letters import HOSTILE

EVENT: dict[str, Any] = {
    "event_id": "e-1", "event_type": "click", "event_time": 1_795_132_800_000, "campaign_id": 900_001, "ad_id": 1,
    "advertiser_id": 9_001, "publisher_id": 1, "country": "DE", "device": "mobile", "cost_micros": 1_000,
}  # fmt: skip


class Message:
    """A message as the Kafka client gives it."""

    def __init__(self, value: bytes | None, headers: Any) -> None:
        self._value, self._headers = value, headers

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> Any:
        if isinstance(self._headers, Exception):
            raise self._headers
        return self._headers

    def key(self) -> None:
        return None

    def offset(self) -> int:
        return 7

    def timestamp(self) -> tuple[int, int]:
        return (1, 0)


@pytest.mark.parametrize("name", HOSTILE)
def test_the_id_of_any_letter_is_read_or_there_is_none(name: str) -> None:
    assert json_fields.valid_id(HOSTILE[name].value) == HOSTILE[name].event_id


@pytest.mark.parametrize("name", HOSTILE)
def test_any_message_of_the_topic_is_a_letter(name: str) -> None:
    hostile = HOSTILE[name]
    letter = dead_letters.letter_of(2, Message(hostile.value, list(hostile.headers) or None))
    assert (letter.name, letter.value) == ("2/7", hostile.value)
    assert all(isinstance(text, str) for text in letter.headers.values())


def test_headers_that_the_client_cannot_read_are_none_at_all() -> None:
    # What confluent-kafka raises on a header's name that is not UTF-8.
    unreadable = SystemError("returned a result with an exception set")
    assert dead_letters.letter_of(0, Message(b"", unreadable)).headers == {}


@pytest.mark.parametrize(
    ("header", "source"),
    {
        "ad-events/3/17": Source("ad-events", 3, 17),
        "t1_ad-events/0/0": Source("t1_ad-events", 0, 0),
        "a/b/0/9": Source("a/b", 0, 9),
        "ad-events/0/9223372036854775807": None,
        "ad-events/-1/5": None,
        "ad-events/1/٣": None,
        "ad-events/zero/1": None,
        "here": None,
        "": None,
    }.items(),
)
def test_a_letter_tells_its_source_only_where_the_header_is_well_formed(header: str, source: Source | None) -> None:
    assert dead_letters.letter_of(0, Message(b"", [("source", header.encode())])).source == source


# -- the id of an event, as every sender must read it --------------------------------------------------------

spellings = st.sampled_from(
    [
        lambda text: json.dumps(text),
        lambda text: json.dumps(text, ensure_ascii=False),
        lambda text: '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in text) + '"',
        lambda text: json.dumps(text).replace("/", "\\/"),
    ]
)
spaces = st.sampled_from(["", " ", "\t", "\n", "\r\n", "  "])
ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["click/2026/7", "café-7", "a$b7", "${AUCTION_ID}-7", 'quote"d', "back\\slash", "\0", "~", "\U0001f44d"]
)


@given(ids, spellings, spaces, spaces, st.booleans(), st.sampled_from([b"", b'"n":"\\ud800",', b'"event_id":5,']))
@example("x", json.dumps, "", "", False, b'"n":' + b"[" * 250 + b"]" * 250 + b",")
def test_every_spelling_of_an_id_gives_the_same_key(
    text: str, spelled: Any, before: str, after: str, escaped_name: bool, extra: bytes
) -> None:
    name = '"\\u0065vent_id"' if escaped_name else '"event_id"'
    line = b"{" + extra + f"{before}{name}{after}:{before}{spelled(text)}{after}}}".encode()
    assert json.loads(line)["event_id"] == text
    event_id, _ = json_fields.read_id_and_time(line)
    assert json_fields.key_of(event_id) == text.encode()


@given(st.binary(max_size=60) | st.sampled_from([x.value for x in HOSTILE.values()]))
def test_an_id_is_read_from_whatever_the_verdict_takes_for_an_object(value: bytes | None) -> None:
    event_id, time_ms = json_fields.read_id_and_time(value)
    event = events.object_of(value)
    if event is not None:
        assert event_id == (event.get("event_id") if isinstance(event.get("event_id"), str) else None)
    assert time_ms is None or isinstance(time_ms, int)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.text(max_size=5)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(max_size=5) | st.sampled_from(sorted(EVENT)), json_values, max_size=6))
def test_a_field_that_is_set_leaves_every_other_as_it_was(fields: dict[str, Any]) -> None:
    line = json.dumps(fields).encode()
    changed = json_fields.with_fields(line, {"country": 'a"b$1\\', "cost_micros": 2**63})
    assert changed is not None
    assert json.loads(changed) == fields | {"country": 'a"b$1\\', "cost_micros": 2**63}


def test_a_number_that_is_written_oddly_keeps_its_spelling_and_its_verdict() -> None:
    for number in ("1.0", "1e3", "9" * 5_000, "-0", "true", "1e999"):
        line = json.dumps(EVENT).replace(": 1000", f": {number}").encode()
        for extra in ("", ', "n": "\\ud800"'):
            value = line[:-1] + extra.encode() + b"}"
            changed = json_fields.with_fields(value, {"country": "FR"})
            before, after = (events.judge(v, EVENT["event_time"]) for v in (value, changed))
            if isinstance(before, events.Rejection):
                assert before == after
            else:
                assert isinstance(after, events.Event)
                assert after.cost_micros == before.cost_micros


@pytest.mark.parametrize("value", [b"[1]", b"7", b"", None, b"\xff", b"{", b'{"a":NaN}'])
def test_what_is_no_object_has_no_fields_to_set(value: bytes | None) -> None:
    assert json_fields.with_fields(value, {"country": "DE"}) is None
