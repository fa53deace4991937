"""Deliveries: what is due, retried, given up; payloads and signatures."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from infra.clickhouse.alerts import Alert
from infra.clock import DAY_MS, HOUR_MS
from query.webhooks.deliveries import DELIVERED, FAILED, GAVE_UP, MUTED, REQUESTED, Attempt, delivery_id
from query.webhooks.payloads import AlertEvent, encode_event, encode_test, events_of
from query.webhooks.queues import AT_ONCE, AT_ONCE_OF_ADVERTISER, Delivery, Queues, RetryPolicy
from query.webhooks.sending import TargetReply, describe_status
from query.webhooks.signature import new_secret, sign
from query.webhooks.webhooks import Webhook

NOW = 1_796_000_000_000
OK, BAD = TargetReply(200, 5, b"ok"), TargetReply(500, 5, b"no", "answered 500")
POLICY = RetryPolicy(pause=lambda failures, first_s, longest_s: min(longest_s, first_s * 2.0**failures))


def webhook(id_: str = "wh_1", **more: Any) -> Webhook:
    plain = Webhook(id_, 3, "https://a.example/h", "", [], "standard", new_secret(), "", 0, True, "", 1, 1, False, 1)
    return msgspec.structs.replace(plain, **more)


def event(
    number: int = 1, *, version: int = 1, at_ms: int = NOW, kind: str = "budget", advertiser: int = 3
) -> AlertEvent:
    alert = Alert(f"al_{number}", version, kind, "warning", "open", advertiser, 7, NOW, 0, "spent", {"share": 0.9})
    return AlertEvent(alert, "alert.opened", at_ms)


def queues_of(*webhooks: Webhook) -> Queues:
    queues = Queues(POLICY)
    queues.set_webhooks(webhooks)
    return queues


def request_of_test(id_: str, number: int) -> Attempt:
    message = f"test_{number}"
    return Attempt(
        delivery_id(id_, message), id_, message, message, 0, "webhook.test", 1, REQUESTED, 0, 0, "", "", NOW, 0, NOW
    )  # fmt: skip


def attempt_of(queues: Queues, delivery: Delivery, reply: TargetReply, now_ms: int) -> Attempt:
    attempt = queues.judge(delivery, reply, now_ms)
    queues.finish(delivery, attempt)
    return attempt


def test_a_webhook_gets_each_event_of_its_advertiser_and_kinds_once() -> None:
    queues = queues_of(webhook(), webhook("wh_2", kinds=["silence"]), webhook("wh_3", advertiser_id=4))
    for _ in range(2):
        queues.add_events([event(1), event(2)], [])
    sent = queues.due(NOW)
    assert [(w.id, d.message_id) for w, d in sent] == [("wh_1", "al_1_1"), ("wh_1", "al_2_1")]
    for _, delivery in sent:
        assert attempt_of(queues, delivery, OK, NOW).outcome == DELIVERED
    # Also where it is read once more before the record of it shows.
    queues.add_events([event(1), event(2)], [])
    assert queues.due(NOW + DAY_MS) == []


def test_what_is_recorded_as_delivered_is_not_sent_and_what_failed_is_tried_when_it_is_due() -> None:
    first = queues_of(webhook())
    first.add_events([event(1), event(2), event(3)], [])
    sent = [delivery for _, delivery in first.due(NOW)]
    records = [attempt_of(first, d, reply, NOW) for d, reply in zip(sent[:2], (OK, BAD), strict=True)]
    assert (records[1].outcome, records[1].next_ms) == (FAILED, NOW + 5_000)
    # The worker is killed here, after sending the third and before recording it.
    second = queues_of(webhook())
    second.add_events([event(1), event(2), event(3)], records)
    assert [d.message_id for _, d in second.due(NOW)] == ["al_3_1"]
    due = {d.message_id: d for _, d in second.due(NOW + 5_000)}
    assert due.keys() == {"al_2_1"}
    assert attempt_of(second, due["al_2_1"], OK, NOW + 5_000).attempt == 2


def test_pauses_grow_and_a_message_is_given_up_after_a_day() -> None:
    queues, now_ms, pauses = queues_of(webhook()), NOW, []
    queues.add_events([event()], [])
    disabled = False
    while due := queues.due(now_ms):
        attempt = queues.judge(due[0][1], BAD, now_ms)
        disabled = queues.finish(due[0][1], attempt)
        if attempt.outcome == GAVE_UP:
            break
        pauses.append((attempt.next_ms - now_ms) // 1000)
        now_ms = attempt.next_ms
    assert pauses[:4] == [5, 10, 20, 40] and pauses[-1] == 3_600
    assert DAY_MS <= now_ms - NOW <= DAY_MS + HOUR_MS
    assert disabled and len(queues) == 0


def test_what_the_worker_finds_after_an_outage_is_tried_for_a_day_from_then_on() -> None:
    queues = queues_of(webhook())
    queues.add_events([event(at_ms=NOW - 25 * HOUR_MS)], [])
    ((_, delivery),) = queues.due(NOW)
    attempt = queues.judge(delivery, BAD, NOW + 9_000)
    assert (attempt.outcome, queues.finish(delivery, attempt)) == (FAILED, False)
    ((_, delivery),) = queues.due(NOW + DAY_MS)
    attempt = queues.judge(delivery, BAD, NOW + DAY_MS)
    assert (attempt.outcome, queues.finish(delivery, attempt)) == (GAVE_UP, True)


def test_a_webhook_that_takes_something_is_not_disabled() -> None:
    queues = queues_of(webhook())
    queues.add_events([event(1)], [])
    ((_, failing),) = queues.due(NOW)
    attempt_of(queues, failing, BAD, NOW)
    queues.add_events([event(2)], [])
    ((_, other),) = queues.due(NOW)
    attempt_of(queues, other, OK, NOW)
    ((_, again),) = queues.due(NOW + DAY_MS)
    attempt = queues.judge(again, BAD, NOW + DAY_MS)
    assert attempt.outcome == GAVE_UP and not queues.finish(again, attempt)


def test_failures_before_an_outage_of_the_worker_do_not_disable_a_webhook() -> None:
    queues = queues_of(webhook())
    queues.set_failing({"wh_1": (NOW - 2 * DAY_MS, NOW - DAY_MS)}, NOW)
    queues.add_events([event()], [])
    ((_, delivery),) = queues.due(NOW)
    assert not queues.finish(delivery, queues.judge(delivery, BAD, NOW))
    queues = queues_of(webhook())
    queues.set_failing({"wh_1": (NOW - 2 * DAY_MS, NOW - 1)}, NOW)
    queues.add_events([event()], [])
    ((_, delivery),) = queues.due(NOW)
    assert queues.finish(delivery, queues.judge(delivery, BAD, NOW))


def test_one_webhook_does_not_hold_up_another_and_a_failing_one_gets_one_message_at_a_time() -> None:
    queues = queues_of(webhook("wh_bad"), webhook("wh_good"))
    queues.add_events([event(number) for number in range(20)], [])
    due = queues.due(NOW)
    assert [sum(w.id == id_ for w, _ in due) for id_ in ("wh_bad", "wh_good")] == [AT_ONCE, AT_ONCE]
    assert queues.due(NOW) == []
    for w, delivery in due:
        attempt_of(queues, delivery, BAD if w.id == "wh_bad" else OK, NOW)
    then = queues.due(NOW)
    assert [sum(w.id == id_ for w, _ in then) for id_ in ("wh_bad", "wh_good")] == [1, AT_ONCE]


def test_an_advertiser_has_a_few_messages_under_way_and_its_webhooks_take_turns() -> None:
    many = [webhook(f"wh_{number}") for number in range(20)]
    queues = queues_of(*many, webhook("wh_other", advertiser_id=4))
    queues.add_events([event(number) for number in range(3)] + [event(9, advertiser=4)], [])
    sent, under_way = list[str](), list[Delivery]()
    for _ in range(6):
        due = queues.due(NOW)
        under_way += [delivery for _, delivery in due]
        assert sum(delivery.advertiser == 3 for delivery in under_way) <= AT_ONCE_OF_ADVERTISER
        sent += [w.id for w, _ in due]
        attempt_of(queues, under_way.pop(0), BAD, NOW)
        attempt_of(queues, under_way.pop(0), OK, NOW)
    # Each of the first ones once before one comes again; and another advertiser does not wait.
    assert sent[:AT_ONCE_OF_ADVERTISER] == [f"wh_{number}" for number in range(AT_ONCE_OF_ADVERTISER)]
    assert sent[AT_ONCE_OF_ADVERTISER] == "wh_other"
    assert len(set(sent)) == len(sent) > AT_ONCE_OF_ADVERTISER + 1


def test_what_is_under_way_to_webhooks_that_are_gone_counts_for_their_advertiser() -> None:
    queues = queues_of()
    for turn in range(3):
        queues.set_webhooks([webhook(f"wh_{turn}_{number}") for number in range(4)])
        queues.add_events([event(turn)], [])
        due = queues.due(NOW)
        assert len(due) == (4, 4, 0)[turn]


def test_of_tests_a_webhook_gets_one_at_a_time_beside_its_alerts() -> None:
    queues = queues_of(webhook())
    queues.add_attempts([request_of_test("wh_1", number) for number in range(4)], [])
    queues.add_events([event()], [])
    due = queues.due(NOW)
    assert sorted(d.message_id for _, d in due) == ["al_1_1", "test_0"]
    assert queues.due(NOW) == []
    for _, delivery in due:
        attempt_of(queues, delivery, BAD, NOW)
    assert [d.message_id for _, d in queues.due(NOW)] == ["test_1"]


def test_a_message_that_is_put_back_is_due_again_and_is_no_failure() -> None:
    queues = queues_of(webhook())
    queues.add_events([event()], [])
    for late_ms in range(0, 2 * DAY_MS, HOUR_MS):
        ((_, delivery),) = queues.due(NOW + late_ms)
        queues.put_back(delivery)
    ((_, delivery),) = queues.due(NOW + 2 * DAY_MS)
    attempt = queues.judge(delivery, BAD, NOW + 2 * DAY_MS)
    assert (attempt.attempt, attempt.outcome) == (1, FAILED)
    assert not queues.finish(delivery, attempt)


def test_a_webhook_gets_nothing_from_before_it_was_made_or_enabled_again() -> None:
    queues = queues_of(webhook(since_ms=NOW))
    queues.add_events([event(1, at_ms=NOW - 1), event(2)], [])
    assert len(queues) == 1
    queues.set_webhooks([webhook(enabled=False)])
    queues.set_webhooks([webhook(since_ms=NOW + 1)])
    queues.add_events([event(2)], [])
    assert len(queues) == 0


def test_a_test_is_sent_once_and_a_replay_under_the_same_id() -> None:
    queues, requested, test = queues_of(webhook()), [], request_of_test("wh_1", 1)
    for _ in range(2):
        queues.add_attempts([test], [])
    ((_, delivery),) = queues.due(NOW)
    assert attempt_of(queues, delivery, BAD, NOW).outcome == GAVE_UP
    queues.add_attempts([test], [])
    assert queues.due(NOW + DAY_MS) == []
    queues.add_events([event()], [])
    ((_, delivery),) = queues.due(NOW)
    done = attempt_of(queues, delivery, OK, NOW)
    replay = msgspec.structs.replace(done, attempt=2, outcome=REQUESTED, began_ms=NOW + 1, at_ms=NOW + 1)
    for _ in range(2):
        queues.add_attempts([replay], [event()])
        requested += [d.message_id for _, d in queues.due(NOW + 1)]
    assert requested == ["al_1_1"]


@given(st.lists(st.sampled_from([OK, BAD]), min_size=1, max_size=12), st.integers(1, 12))
def test_an_attempt_that_was_not_recorded_is_made_again_and_a_delivered_one_never(
    replies: list[TargetReply], killed_at: int
) -> None:
    queues, records, sent, now_ms = queues_of(webhook()), dict[str, Attempt](), list[bool](), NOW
    queues.add_events([event()], [])
    for number, reply in enumerate(replies, 1):
        now_ms += DAY_MS // 24
        for _, delivery in queues.due(now_ms):
            sent.append(not reply.problem)
            attempt = queues.judge(delivery, reply, now_ms)
            if number == killed_at:
                queues = queues_of(webhook())
                queues.add_events([event()], records.values())
                continue
            records[attempt.id] = attempt
            queues.finish(delivery, attempt)
    recorded = [attempt.outcome == DELIVERED for attempt in records.values()]
    if recorded == [True]:
        assert sent.count(True) <= 2 and sent[-1]
        assert sent.count(True) == 1 or 1 <= killed_at <= len(replies)


# -- payloads and signatures ---------------------------------------------------------------------------------------


def versions(*states: tuple[str, str]) -> list[str]:
    alerts = [
        (Alert("al_1", n, "budget", severity, state, 3, 7, NOW, 0, ""), NOW + n)
        for n, (state, severity) in enumerate(states, 1)
    ]
    return [event.type for event in events_of(alerts)]


def test_the_type_of_a_message_says_what_has_become_of_the_alert() -> None:
    assert versions(("open", "warning"), ("open", "critical"), ("closed", "critical"), ("open", "warning")) == [
        "alert.opened", "alert.worsened", "alert.closed", "alert.opened",
    ]  # fmt: skip
    assert versions(("open", "warning"), ("withdrawn", "warning")) == ["alert.opened", "alert.withdrawn"]


def test_the_standard_payload_has_type_timestamp_and_data() -> None:
    body = json.loads(encode_event(event(), "standard", "http://router"))
    assert (body["type"], list(body)) == ("alert.opened", ["type", "timestamp", "data"])
    assert (body["data"]["id"], body["data"]["version"], body["data"]["ended"]) == ("al_1", 1, None)
    assert body["data"]["detail"] == {"share": 0.9}
    assert encode_event(event(), "standard", "a") == encode_event(event(), "standard", "b")


def test_the_other_format_is_that_of_alertmanager() -> None:
    body = json.loads(encode_event(event(), "alertmanager", "http://router"))
    assert (body["version"], body["status"], body["externalURL"]) == ("4", "firing", "http://router")
    (alert,) = body["alerts"]
    assert alert["labels"] == {"alertname": "budget", "severity": "warning", "advertiser_id": "3", "campaign_id": "7"}
    assert alert["endsAt"] == "0001-01-01T00:00:00Z"
    closed = Alert("al_1", 2, "silence", "critical", "closed", 0, 0, 0, HOUR_MS, "")
    body = json.loads(encode_event(AlertEvent(closed, "alert.closed", NOW), "alertmanager", ""))
    assert (body["status"], body["alerts"][0]["endsAt"]) == ("resolved", "1970-01-01T01:00:00Z")
    assert "advertiser_id" not in body["commonLabels"]
    assert (
        json.loads(encode_test("wh_1", NOW, "alertmanager", ""))["alerts"][0]["labels"]["alertname"] == "webhook-test"
    )
    assert json.loads(encode_test("wh_1", NOW, "standard", ""))["type"] == "webhook.test"


def test_a_signature_is_accepted_by_the_library_and_only_with_its_secret_and_body() -> None:
    secret, former, other = new_secret(), new_secret(), new_secret()
    body = encode_event(event(), "standard", "")
    headers = sign("al_1_1", time.time_ns() // 1_000_000, body, [secret, former])
    for known in (secret, former):
        assert Verifier(known).verify(body, headers)["data"]["id"] == "al_1"
    with pytest.raises(WebhookVerificationError):
        Verifier(other).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Verifier(secret).verify(body + b" ", headers)
    with pytest.raises(WebhookVerificationError):
        Verifier(secret).verify(body, headers | {"webhook-id": "al_1_2"})


def test_secrets_are_signed_with_until_their_grace_is_over_and_never_shown() -> None:
    rotated = webhook(secret="whsec_new", former_secret="whsec_old", former_until_ms=NOW)
    assert rotated.secrets_in_use(NOW - 1) == ["whsec_new", "whsec_old"]
    assert rotated.secrets_in_use(NOW) == ["whsec_new"]
    assert "whsec" not in repr(rotated)


@pytest.mark.parametrize(
    ("status", "problem"),
    [(200, ""), (204, ""), (302, "redirects are not followed"), (404, "answered 404"), (503, "answered 503")],
)
def test_only_a_status_of_success_counts_as_delivered(status: int, problem: str) -> None:
    assert problem in describe_status(status) and bool(problem) == bool(describe_status(status))


def test_a_muted_message_says_nothing_about_its_target() -> None:
    queues = queues_of(webhook())
    queues.add_events([event(1), event(2)], [])
    first, second = (delivery for _, delivery in queues.due(NOW))
    attempt_of(queues, first, BAD, NOW)
    muted = queues.skip_muted(second, NOW + HOUR_MS, NOW + 1)
    assert (muted.outcome, muted.status, muted.next_ms) == (MUTED, 0, 0)
    assert not queues.finish(second, muted)
    # It is not tried again, and the webhook has failed since its first failure, no longer and no less.
    queues.add_events([event(2)], [muted])
    assert [delivery.message_id for _, delivery in queues.due(NOW + DAY_MS)] == ["al_1_1"]
    assert queues.finish(first, queues.judge(first, BAD, NOW + DAY_MS))
