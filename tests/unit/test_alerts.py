"""Alerts without a store: who sees which, how many were false, what is muted until when, and that a stream sends each version once."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from infra.clock import DAY_MS, HOUR_MS, iso
from infra.errors import TimedOut, Unavailable
from query.alerts.mutes import LONGEST_MS, ActiveMutes, Mute, MuteRequest, MuteSubject, parse_mute
from query.alerts.positions import MOST_NAMED, OVERLAP_MS, StreamPosition, read_position
from query.alerts.questions import AlertFilter, parse_alert_filter, parse_alerts_question
from query.alerts.records import Acknowledgement, AlertVersion, describe_alert
from query.alerts.scope import WHOLE_INSTALLATION, AlertScope
from query.alerts.store import AlertStore
from query.alerts.summary import DAYS, AlertCounts, AlertSummary
from query.api.alerts import AlertsApi
from query.api.latest_reading import LatestReading
from query.bad_question import BadQuestion
from query.circuit import Guard
from query.keys import Access
from query.row_scope import ALL_ROWS, RowScope
from query.signing import Signer
from tests.product import wait_until
from tests.unit.fakes import Clock

NOW = 20_000 * DAY_MS
SIGNER = Signer("a secret of these tests")
MINE = AlertScope(RowScope(frozenset({1})))
NARROW = AlertScope(RowScope(frozenset({1}), frozenset({7})))


def version(number: int = 1, at_ms: int = NOW, **fields: Any) -> AlertVersion:
    values: dict[str, Any] = {
        "id": "al_1", "version": number, "kind": "spend-spike", "severity": "warning", "state": "open", "advertiser_id": 1,
        "campaign_id": 7, "opened_ms": NOW - HOUR_MS, "ended_ms": 0, "summary": "much", "detail": "{}", "at_ms": at_ms,
    }  # fmt: skip
    return AlertVersion(**values | fields)


# -- how many were false -----------------------------------------------------------------------------------------


class SlowStore:
    """Its summary ends with an error, or once it may."""

    def __init__(self) -> None:
        self.calls, self.fails, self.may_end = 0, False, threading.Event()
        self.may_end.set()

    def summary(self, *_: Any) -> AlertSummary:
        self.calls += 1
        self.may_end.wait(10)
        if self.fails:
            raise TimedOut("ClickHouse: it did not answer in time", backend="clickhouse")
        return AlertSummary(0, 1, DAYS, (AlertCounts("ctr-drop", self.calls, 1, 0),))


def test_a_scrape_waits_for_no_summary_and_asks_for_none_at_each_time_after_a_failure() -> None:
    store, clock = SlowStore(), Clock()
    latest = LatestReading(store.summary, clock, wait_s=0.05)

    def kinds() -> list[int] | None:
        summary = latest.get()
        return None if summary is None else [counts.alerts for counts in summary.kinds]

    store.may_end.clear()
    assert (kinds(), kinds(), store.calls) == (None, None, 1)
    store.may_end.set()
    wait_until(lambda: kinds() == [1], 5, "a later scrape has what was read")
    clock.now += 599
    assert (kinds(), store.calls) == ([1], 1)
    store.fails, clock.now = True, clock.now + 1
    wait_until(lambda: kinds() is None, 5, "the summary that could not be read")
    store.fails, clock.now = False, clock.now + 59
    assert (kinds(), store.calls) == (None, 2)
    clock.now += 1
    wait_until(lambda: kinds() == [3], 5, "it is read again after a minute")


def test_summaries_are_shared_for_a_while_and_their_failures_are_none_of_the_counts() -> None:
    store, guard = SlowStore(), Guard("clickhouse")
    api = AlertsApi(cast(AlertStore, store), SIGNER, guard, lambda: NOW)

    def ask(advertiser: int) -> bytes:
        request = Request({"type": "http", "query_string": b"advertiser_id=%d" % advertiser, "headers": []})
        return api.summary(request, Access("key", frozenset({1, 2}), admin=False)).body

    assert ask(1) == ask(1) and store.calls == 1
    ask(2)
    assert store.calls == 2
    store.fails = True
    narrow = Access("key", frozenset({1}), admin=False)
    for _ in range(5):
        with pytest.raises(Unavailable):
            api.summary(Request({"type": "http", "query_string": b"", "headers": []}), narrow)
    assert store.calls < 7, "the circuit is open"
    assert guard.call(lambda: "counts") == "counts"


# -- who sees which ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "advertiser", "campaign", "seen"),
    [
        (MINE, 1, 7, True), (MINE, 1, 0, True), (MINE, 2, 7, False), (MINE, 0, 0, False),
        (NARROW, 1, 7, True), (NARROW, 1, 8, False), (NARROW, 1, 0, False), (NARROW, 2, 7, False),
        (AlertScope(RowScope(frozenset({0, 1}))), 0, 0, False), (AlertScope(RowScope(frozenset({1}), frozenset({0, 7}))), 1, 0, False),
        (AlertScope(ALL_ROWS), 0, 0, False), (AlertScope(ALL_ROWS), 9, 9, True), (WHOLE_INSTALLATION, 0, 0, True),
    ],
)  # fmt: skip
def test_alerts_are_seen_by_those_who_see_their_rows(
    scope: AlertScope, advertiser: int, campaign: int, seen: bool
) -> None:
    assert scope.sees(advertiser, campaign) is seen


def test_the_operator_is_an_admin_key_that_sees_all_rows() -> None:
    assert AlertScope.of(ALL_ROWS, admin=True) == WHOLE_INSTALLATION
    assert not AlertScope.of(ALL_ROWS, admin=False).operator
    assert not AlertScope.of(RowScope(frozenset({1})), admin=True).operator
    assert not AlertScope.of(RowScope(None, frozenset({7})), admin=True).operator


@pytest.mark.parametrize(
    ("access", "may"),
    [
        (Access("k", frozenset({1}), admin=False), True),
        (Access("k", frozenset({1}), admin=False, share=True), False),
        (Access("k", frozenset({1}), admin=False, token="t"), False),
        (Access("k", None, admin=True, token="t"), True),
        (Access("k", None, admin=True), True),
    ],
)
def test_keys_act_on_alerts_and_links_and_tokens_that_only_read_do_not(access: Access, may: bool) -> None:
    assert access.may_act_on_alerts is may


# -- questions ---------------------------------------------------------------------------------------------------------


def parse(scope: AlertScope = MINE, /, **parameters: str) -> Any:
    return parse_alerts_question(list(parameters.items()), NOW, scope, SIGNER)


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({"kind": "A b"}, 400), ({"kind": ""}, 400), ({"kind": "x" * 65}, 400), ({"severity": "low"}, 400), ({"state": "ended"}, 400),
        ({"muted": "1"}, 400), ({"advertiser_id": "-1"}, 400), ({"advertiser_id": "2"}, 403), ({"advertiser_id": "0"}, 403),
        ({"campaign_id": "7,x"}, 400), ({"since": "yesterday"}, 400), ({"limit": "0"}, 400), ({"limit": "1001"}, 400),
        ({"limit": "١"}, 400), ({"cursor": "x"}, 400), ({"order": "id"}, 400),
    ],
)  # fmt: skip
def test_bad_questions_are_refused(parameters: dict[str, str], status: int) -> None:
    with pytest.raises(BadQuestion) as refusal:
        parse(**parameters)
    assert (refusal.value.status, refusal.value.parameter) == (status, next(iter(parameters)))


def test_a_cursor_belongs_to_its_question_and_keeps_its_since() -> None:
    first = parse(since="-7d", severity="critical")
    assert (first.since_ms, first.filter.severities, first.after) == (NOW - 7 * DAY_MS, ("critical",), None)
    payload = {"of": "alerts", "q": first.digest, "at": NOW, "s": first.since_ms, "k": [5, "al_1"]}
    later = parse_alerts_question(
        [("since", "-7d"), ("severity", "critical"), ("cursor", SIGNER.sign(payload))], NOW + HOUR_MS, MINE, SIGNER
    )
    assert (later.since_ms, later.as_of_ms, later.after) == (first.since_ms, NOW, (5, "al_1"))
    for other in ({"since": "-6d", "severity": "critical"}, {"since": "-7d"}):
        with pytest.raises(BadQuestion):
            parse(**other, cursor=SIGNER.sign(payload))
    with pytest.raises(BadQuestion):
        parse(NARROW, since="-7d", severity="critical", cursor=SIGNER.sign(payload))


def test_a_filter_takes_what_its_parameters_say() -> None:
    assert parse_alert_filter([], MINE).accepts(version())
    for name, value, other in (
        ("kind", "ctr-drop", {"kind": "ctr-drop"}), ("severity", "critical", {"severity": "critical"}),
        ("state", "closed", {"state": "closed"}), ("campaign_id", "8,9", {"campaign_id": 9}),
    ):  # fmt: skip
        chosen = parse_alert_filter([(name, value)], MINE)
        assert not chosen.accepts(version())
        assert chosen.accepts(version(**other)), name
    assert not AlertFilter(MINE).accepts(version(advertiser_id=2))


# -- documents -------------------------------------------------------------------------------------------------------


def test_a_document_has_moments_as_text_and_whatever_detail_is_json() -> None:
    document = describe_alert(
        version(detail='{"value": 9007199254740993, "ratio": NaN}'), Acknowledgement(1, "key k", NOW), NOW + 1
    )
    assert document["detail"] == {"value": 2**53 + 1, "ratio": None}
    assert (document["opened"], document["ended"]) == (iso(NOW - HOUR_MS), None)
    assert document["acknowledged"] == {"version": 1, "by": "key k", "at": iso(NOW)}
    assert document["muted_until"] == iso(NOW + 1)
    for broken in ("", "[1]", "{", "null"):
        assert describe_alert(version(detail=broken), None, None)["detail"] == {}


# -- mutes -----------------------------------------------------------------------------------------------------------


def request(**fields: Any) -> MuteRequest:
    values: dict[str, Any] = {"advertiser_id": 1, "until": iso(NOW + DAY_MS)} | fields
    return MuteRequest(**values)


@pytest.mark.parametrize(
    ("scope", "fields", "status", "parameter"),
    [
        (MINE, {"advertiser_id": 2}, 403, "advertiser_id"), (MINE, {"advertiser_id": 0}, 403, "advertiser_id"),
        (NARROW, {}, 403, "advertiser_id"), (NARROW, {"campaign_id": 8}, 403, "campaign_id"),
        (MINE, {"until": iso(NOW)}, 400, "until"), (MINE, {"until": "-1h"}, 400, "until"), (MINE, {"until": "soon"}, 400, "until"),
        (MINE, {"until": iso(NOW + LONGEST_MS + 1)}, 422, "until"), (MINE, {"kind": "A"}, 400, "kind"), (MINE, {"kind": ""}, 400, "kind"),
    ],
)  # fmt: skip
def test_a_mute_is_for_what_may_be_seen_and_for_90_days_at_most(
    scope: AlertScope, fields: dict[str, Any], status: int, parameter: str
) -> None:
    with pytest.raises(BadQuestion) as refusal:
        parse_mute(request(**fields), NOW, scope)
    assert (refusal.value.status, refusal.value.parameter) == (status, parameter)


def test_a_mute_of_the_same_alerts_has_the_same_id() -> None:
    assert parse_mute(request(campaign_id=7), NOW, NARROW) == (MuteSubject("", 1, 7), NOW + DAY_MS)
    assert parse_mute(request(until=iso(NOW + LONGEST_MS)), NOW, MINE)[1] == NOW + LONGEST_MS
    assert parse_mute(request(advertiser_id=0), NOW, WHOLE_INSTALLATION)[0] == MuteSubject("", 0, None)
    subjects = [MuteSubject(kind, a, c) for kind in ("", "ctr-drop") for a in (0, 1) for c in (None, 0, 7)]
    assert len({subject.id for subject in subjects}) == len(subjects)
    assert MuteSubject("", 1, 7).id == MuteSubject("", 1, 7).id


def test_the_mute_that_lasts_longest_counts() -> None:
    def mute(until_ms: int, *subject: Any) -> Mute:
        return Mute(MuteSubject(*subject), until_ms, "key k", NOW, 1)

    mutes = ActiveMutes([
        mute(10, "spend-spike", 1, 7), mute(20, "", 1, 8), mute(30, "ctr-drop", 1, None), mute(40, "", 2, None),
    ])  # fmt: skip
    assert mutes.until_ms(version()) == 10
    assert mutes.until_ms(version(campaign_id=8)) == 20
    assert mutes.until_ms(version(kind="ctr-drop")) == 30
    assert mutes.until_ms(version(kind="ctr-drop", campaign_id=0)) == 30
    assert mutes.until_ms(version(advertiser_id=2, campaign_id=0)) == 40
    assert mutes.until_ms(version(campaign_id=9)) is None


def test_a_narrow_key_sees_the_mutes_of_what_it_sees() -> None:
    for subject, seen in (("", 1, 7), True), (("", 1, None), True), (("", 1, 8), False), (("", 2, 7), False), (("", 0, None), False):  # fmt: skip
        assert Mute(MuteSubject(*subject), NOW, "key k", NOW, 1).visible_in(NARROW) is seen


# -- the stream ------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 50)), max_size=60),
    st.lists(st.booleans(), min_size=60, max_size=60),
)
def test_each_version_is_sent_once_however_late_it_is_seen_and_whenever_the_client_reconnects(
    written: list[tuple[int, int]], reconnects: list[bool]
) -> None:
    """Versions are written in a second, and become visible up to 50 seconds later, in any order."""
    versions = [version(n, NOW + second * 1000) for n, (second, _) in enumerate(written)]
    visible = [NOW + (second + late) * 1000 for second, late in written]
    position, sent = StreamPosition.after([], NOW), list[int]()
    for tick in range(60):
        now = NOW + tick * 7_000
        seen = [v for v, at in zip(versions, visible, strict=True) if at <= now]
        fresh = position.unsent(seen)
        sent += [v.version for v in fresh]
        position = position.advanced(fresh, now)
        if reconnects[tick]:
            position = read_position(position.encode(SIGNER), SIGNER)
    assert sorted(sent) == list(range(len(versions)))


def test_a_version_that_is_written_twice_is_sent_once() -> None:
    position = StreamPosition.after([], NOW)
    fresh = position.unsent([version(1, NOW + 5), version(1, NOW + 1)])
    assert [v.at_ms for v in fresh] == [NOW + 1]
    position = position.advanced(fresh, NOW + 10)
    assert position.unsent([version(1, NOW + 5)]) == []
    assert [v.version for v in position.unsent([version(2, NOW + 5)])] == [2]


def test_a_position_stays_short_and_does_not_send_a_burst_again() -> None:
    burst = [version(n, NOW + n // 10) for n in range(20 * MOST_NAMED)]
    position = StreamPosition.after([], NOW).advanced(burst, NOW + 1000)
    assert len(position.sent) <= MOST_NAMED
    assert position.unsent(burst) == []
    assert len(position.encode(SIGNER)) < 4_000
    at_once = StreamPosition.after([], NOW).advanced([version(n, NOW) for n in range(1000)], NOW + 1000)
    assert (at_once.sent, at_once.from_ms) == ((), NOW + 1)


def test_a_stream_begins_behind_what_could_be_seen() -> None:
    old, recent = version(1, NOW - 2 * OVERLAP_MS), version(2, NOW - 10)
    position = StreamPosition.after([recent], NOW)
    assert [v.version for v in position.unsent([old, recent, version(3, NOW - 5), version(4, NOW + 5)])] == [3, 4]


@pytest.mark.parametrize("text", ["x", "", "x.y", SIGNER.sign({"of": "metrics"}), Signer("other").sign({"of": "alert-stream", "t": 1, "s": []})])  # fmt: skip
def test_a_position_that_was_not_issued_here_is_refused(text: str) -> None:
    with pytest.raises(BadQuestion):
        read_position(text, SIGNER)


def test_the_rate_is_that_of_a_campaign_and_month() -> None:
    counts = AlertCounts("spend-spike", 10, 1, 3)
    summary = AlertSummary(0, 28 * DAY_MS, 140, (counts, AlertCounts("ctr-drop", 0, 0, 0)))
    document = summary.document()
    assert [row["false_alarms_per_campaign_month"] for row in document["data"]] == [0.8, 0.0]
    assert (document["campaign_months"], document["total"]["false_alarms"]) == (5.0, 4)
    none = AlertSummary(0, DAY_MS, 0, (counts,)).document()
    assert none["data"][0]["false_alarms_per_campaign_month"] is None
