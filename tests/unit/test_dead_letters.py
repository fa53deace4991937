"""Dead letters: any bytes and any headers can be read, and what is sent again is what was corrected, once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infra.errors import UsageError, UserError
from infra.kafka import topics
from infra.settings import Settings
from ingest import events
from ingest.dead_letters import browse
from ingest.dead_letters import letters as dead_letters
from ingest.dead_letters.edit import parse_edits
from ingest.dead_letters.letters import Letter, SourceMessage
from ingest.dead_letters.replay import Plan, plan_letters, plan_lines
from ingest.dead_letters.sent import SentLetters
from ingest.decoding import json_fields
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
def test_the_event_id_of_any_letter_is_read_or_none(name: str) -> None:
    assert json_fields.valid_id(HOSTILE[name].value) == HOSTILE[name].event_id


@pytest.mark.parametrize("name", HOSTILE)
def test_any_message_of_the_topic_is_a_letter(name: str) -> None:
    hostile = HOSTILE[name]
    letter = dead_letters.letter_of(2, Message(hostile.value, list(hostile.headers) or None))
    assert (letter.name, letter.value) == ("2/7", hostile.value)
    assert all(isinstance(text, str) for text in letter.headers.values())


def test_a_letter_whose_headers_the_client_cannot_decode_has_none() -> None:
    # What confluent-kafka raises on a header's name that is not UTF-8.
    unreadable = SystemError("returned a result with an exception set")
    assert dead_letters.letter_of(0, Message(b"", unreadable)).headers == {}


@pytest.mark.parametrize(
    ("header", "source"),
    {
        "ad-events/3/17": SourceMessage("ad-events", 3, 17),
        "t1_ad-events/0/0": SourceMessage("t1_ad-events", 0, 0),
        "a/b/0/9": SourceMessage("a/b", 0, 9),
        "ad-events/0/9223372036854775807": None,
        "ad-events/-1/5": None,
        "ad-events/1/٣": None,
        "ad-events/zero/1": None,
        "here": None,
        "": None,
    }.items(),
)
def test_the_source_of_a_letter_is_read_only_from_a_well_formed_header(
    header: str, source: SourceMessage | None
) -> None:
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
def test_an_id_is_read_from_every_value_that_is_judged_as_an_object(value: bytes | None) -> None:
    event_id, time_ms = json_fields.read_id_and_time(value)
    event = events.object_of(value)
    if event is not None:
        assert event_id == (event.get("event_id") if isinstance(event.get("event_id"), str) else None)
    assert time_ms is None or isinstance(time_ms, int)
    assert json_fields.read_ids_and_times([value or b"", b"{}"]) == ([event_id, None], [time_ms, None])


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
def test_setting_a_field_changes_no_other(fields: dict[str, Any]) -> None:
    line = json.dumps(fields).encode()
    changed = json_fields.with_fields(line, {"country": 'a"b$1\\', "cost_micros": 2**63})
    assert changed is not None
    assert json.loads(changed) == fields | {"country": 'a"b$1\\', "cost_micros": 2**63}


def test_an_unusual_spelling_of_a_number_is_kept_and_judged_the_same() -> None:
    for number in ("1.0", "1e3", "9" * 5_000, "-0", "true", "1e999"):
        line = json.dumps(EVENT).replace(": 1000", f": {number}").encode()
        for extra in ("", ', "n": "\\ud800"'):
            value = line[:-1] + extra.encode() + b"}"
            changed = json_fields.with_fields(value, {"country": "FR"})
            before, after = (events.judge_message(v, EVENT["event_time"]) for v in (value, changed))
            if isinstance(before, events.Rejection):
                assert before == after
            else:
                assert isinstance(after, events.Event)
                assert after.cost_micros == before.cost_micros


@pytest.mark.parametrize("value", [b"[1]", b"7", b"", None, b"\xff", b"{", b'{"a":NaN}'])
def test_a_value_that_is_no_object_cannot_be_edited(value: bytes | None) -> None:
    assert json_fields.with_fields(value, {"country": "DE"}) is None


# -- edits, and what was sent before --------------------------------------------------------------------------

NOW = EVENT["event_time"] + 1_000


def letter(name: str, reason: str, detail: str, time_ms: int = NOW, **fields: Any) -> Letter:
    value = json.dumps({k: v for k, v in (EVENT | fields).items() if v is not ...}).encode()
    return Letter(name, b"k", value, {"reason": reason, "detail": detail}, time_ms)


def sent_events(plan: Plan) -> list[dict[str, Any]]:
    return [json.loads(value) for value, _ in plan.sends]


def marks_of(plan: Plan) -> SentLetters:
    return SentLetters(mark for _, mark in plan.sends)


def planned(
    letters: list[Letter], sent: SentLetters | None = None, *edits: str, again: bool = False, now_ms: int = NOW
) -> Plan:
    return plan_letters(letters, parse_edits(edits), sent or SentLetters(), now_ms, again=again)


UNKNOWN_COUNTRY = letter("0/1", "bad-value", "country", event_id="uk", country="UK")
NEGATIVE_COST = letter("0/2", "bad-value", "cost_micros", event_id="fr", country="FR", cost_micros=-1)
NUMERIC_ID = letter("0/3", "bad-value", "event_id", event_id=12)
THREE = [UNKNOWN_COUNTRY, NEGATIVE_COST, NUMERIC_ID]


def test_an_edit_applies_only_to_letters_rejected_for_that_field() -> None:
    plan = planned(THREE, None, "country=ZZ")
    assert sent_events(plan) == [EVENT | {"event_id": "uk", "country": "ZZ"}]
    assert plan.left == {"bad-value cost_micros": 1, "bad-value event_id": 1}
    plan = planned(THREE, None, "cost_micros=5", "event_id=new", "country=ZZ")
    assert sent_events(plan) == [
        EVENT | {"event_id": "uk", "country": "ZZ"},
        EVENT | {"event_id": "fr", "country": "FR", "cost_micros": 5},
        EVENT | {"event_id": "new"},
    ]
    assert [mark.letter for _, mark in plan.sends] == ["0/1", "0/2", "0/3"]


def test_an_event_is_corrected_by_edits_of_exactly_its_invalid_fields() -> None:
    both = letter("0/1", "bad-value", "country", country="UK", device="phone", user_id="u")
    assert planned([both], None, "country=GB").left == {"bad-value device": 1}
    plan = planned([both], None, "device=mobile", "country=GB", "user_id=x", "cost_micros=0")
    assert sent_events(plan) == [EVENT | {"country": "GB", "device": "mobile", "user_id": "u"}]


@pytest.mark.parametrize(
    ("reason", "detail", "fields", "edit", "value"),
    [
        ("missing-field", "ad_id", {"ad_id": ...}, "ad_id=7", 7),
        ("missing-field", "event_id", {"event_id": None}, "event_id=7", "7"),
        ("bad-value", "event_id", {"event_id": ""}, 'event_id="7"', "7"),
        ("bad-value", "user_id", {"user_id": 5}, "user_id=null", None),
        ("bad-value", "user_id", {"user_id": 5}, "user_id=NaN", "NaN"),
        ("bad-value", "event_time", {"event_time": "x"}, f"event_time={NOW}", NOW),
        ("bad-value", "event_time", {"event_time": "x"}, "event_time=2026-11-20T00:00:00Z", "2026-11-20T00:00:00Z"),
        ("from-the-future", "9 ms ahead", {"event_time": NOW * 2}, f"event_time={NOW}", NOW),
        ("bad-value", "country", {"country": "UK", "n": "\ud800"}, "country=NA", "NA"),
        ("bad-value", "cost_micros", {"cost_micros": 10**4000}, "cost_micros=1", 1),
    ],
)
def test_an_edited_value_gets_the_type_of_its_field(
    reason: str, detail: str, fields: dict[str, Any], edit: str, value: Any
) -> None:
    (event,) = sent_events(planned([letter("0/1", reason, detail, **fields)], None, edit))
    assert event[edit.partition("=")[0]] == value
    assert event.keys() == EVENT.keys() | fields.keys()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_plan_leaves_out_letters_that_cannot_be_corrected(name: str) -> None:
    hostile = dead_letters.letter_of(0, Message(HOSTILE[name].value, list(HOSTILE[name].headers) or None))
    for headers in (hostile.headers, {"reason": "bad-value", "detail": "country"}):
        plan = planned([Letter("0/1", None, hostile.value, headers, 0)], None, "country=ZZ")
        assert plan.sends == []
        assert plan.left.total() == 1


def test_a_letter_without_edits_is_sent_only_if_its_event_is_valid_by_now() -> None:
    early = letter("0/1", "from-the-future", "x", event_time=NOW + 3_600_000)
    assert planned([early]).left.total() == 1
    assert sent_events(planned([early], now_ms=NOW + 3_600_000)) == [EVENT | {"event_time": NOW + 3_600_000}]


def test_a_letter_is_sent_again_only_on_request() -> None:
    first = planned(THREE, None, "country=ZZ")
    repeated = planned(THREE, marks_of(first), "country=ZZ")
    assert (repeated.sends, len(repeated.sent_before)) == ([], 1)
    assert repeated.left == {"bad-value cost_micros": 1, "bad-value event_id": 1}
    assert planned([UNKNOWN_COUNTRY], marks_of(first)).left == {}
    assert sent_events(planned(THREE, marks_of(first), "country=FR", again=True)) == [
        EVENT | {"event_id": "uk", "country": "FR"}
    ]


def test_letters_of_one_event_are_sent_once_within_and_across_commands() -> None:
    copies = [letter(f"0/{n}", "bad-value", "country", NOW + n, country="UK") for n in range(3)]
    plan = planned(copies, None, "country=ZZ")
    assert (len(plan.sends), len(plan.sent_before)) == (1, 2)
    one = planned(copies[:1], None, "country=ZZ")
    assert planned(copies[1:], marks_of(one), "country=ZZ").sends == []
    same = [letter(f"0/{n}", "from-the-future", "x", NOW, event_time=NOW) for n in range(2)]
    assert planned(same[1:], marks_of(planned(same[:1]))).sends == []


def test_a_letter_of_a_sent_event_that_was_rejected_again_can_be_sent() -> None:
    plan = planned([UNKNOWN_COUNTRY], None, "country=ZZ")
    ((value, _),) = plan.sends
    rejected = Letter("0/9", b"uk", value, {"reason": "bad-value", "detail": "country"}, NOW + 5_000)
    assert sent_events(planned([rejected], marks_of(plan), "country=DE")) == [
        EVENT | {"event_id": "uk", "country": "DE"}
    ]


def test_a_sent_mark_does_not_cover_a_letter_of_the_same_name_in_a_recreated_topic() -> None:
    plan = planned([UNKNOWN_COUNTRY], None, "country=ZZ")
    other = letter("0/1", "bad-value", "country", NOW + 9_000, event_id="other", country="XX")
    assert len(planned([other], marks_of(plan), "country=ZZ").sends) == 1


def test_letters_that_an_edit_would_give_one_event_id_are_counted() -> None:
    letters = [letter(f"0/{n}", "bad-value", "event_id", event_id=n) for n in range(3)]
    assert planned(letters, None, "event_id=x").ids_set == 3
    assert planned([*letters[:1], UNKNOWN_COUNTRY], None, "event_id=x", "country=ZZ").ids_set == 1


def test_too_late_letters_are_left_to_the_nightly_job() -> None:
    plan = planned([letter("0/1", "too-late", "9 ms")], None)
    assert plan.sends == []
    assert "nightly" in plan.first_left


def test_a_whole_batch_is_left_and_a_single_message_that_was_set_aside_is_sent() -> None:
    message = letter("0/1", "unreadable", "ZeroDivisionError: a bug")
    batch = dataclasses.replace(message, name="0/2", value=b"\0\1", headers=message.headers | {"messages": "3"})
    plan = planned([message, batch], None)
    assert [event["event_id"] for event in sent_events(plan)] == [EVENT["event_id"]]
    assert [name for name, why in plan.refused if "whole record batch" in why] == ["0/2"]


def test_events_of_a_file_are_sent_once_and_only_if_all_of_them_are_valid() -> None:
    lines = [json.dumps(EVENT | {"event_id": name}).encode() for name in ("a", "b", "a")]
    plan = plan_lines("f", lines, SentLetters(), NOW, again=False)
    assert [event["event_id"] for event in sent_events(plan)] == ["a", "b"]
    assert plan_lines("f", lines, marks_of(plan), NOW, again=False).sends == []
    assert len(plan_lines("f", lines, marks_of(plan), NOW, again=True).sends) == 2
    assert planned([letter("0/1", "bad-value", "country", event_id="a", country="UK")], marks_of(plan)).sends == []
    with pytest.raises(UserError, match=r"event 2 of f .*bad-value country"):
        plan_lines("f", [lines[0], json.dumps(EVENT | {"country": "UK"}).encode()], SentLetters(), NOW, again=False)


@pytest.mark.parametrize("edit", ["country", "nation=DE", "=DE", ""])
def test_an_edit_of_an_unknown_field_is_a_usage_error(edit: str) -> None:
    with pytest.raises(UsageError, match="FIELD=VALUE"):
        parse_edits((edit,))


def test_two_edits_of_one_field_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="twice"):
        parse_edits(("country=DE", "country=FR"))


@pytest.mark.parametrize("text", ["9" * 5_000, "[" * 5_000, "1e999", "{", "Infinity", "\ud800"])
def test_any_text_can_be_typed_as_a_value(text: str) -> None:
    for name in ("country", "cost_micros"):
        bad = letter("0/1", "bad-value", name, NOW, **{name: "?"})
        assert planned([bad], None, f"{name}={text}").left == {f"bad-value {name}": 1}


def test_letters_of_a_far_future_are_not_counted_by_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ms = 1_795_132_800_000

    class Stamped(Message):
        def __init__(self, time_ms: int) -> None:
            super().__init__(b"", [("reason", b"malformed")])
            self._time_ms = time_ms

        def partition(self) -> int:
            return 0

        def timestamp(self) -> tuple[int, int]:
            return (1, self._time_ms)

    class FakeAdmin:
        def __init__(self, _servers: str) -> None:
            pass

        def partitions(self) -> dict[str, int]:
            return {topics.DEAD_LETTERS: 1}

        def ends(self, _topic: str, _count: int) -> list[int]:
            return [2]

    def read_stretches(
        _servers: str, _topic: str, _stretches: object, take: Callable[[Any], None], _seconds: float
    ) -> dict[int, int]:
        for time_ms in (now_ms, 2**60):
            take(Stamped(time_ms))
        return {0: 2}

    monkeypatch.setattr(browse, "Admin", FakeAdmin)
    monkeypatch.setattr(browse, "offset_at", lambda *_: 0)
    monkeypatch.setattr(browse, "read_stretches", read_stretches)
    settings = SimpleNamespace(kafka_connection="", event_partitions=1, topic=lambda name: name)
    counts = browse.LetterCounts(cast(Settings, settings))
    assert counts.read(now_ms) == ([(now_ms, "malformed", 1)], True)
