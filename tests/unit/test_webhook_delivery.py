"""The loop that delivers, on stores in memory: by whose clock it reads, and what it does where nothing could be sent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from infra import logs
from infra.clickhouse.alerts import Alert
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS
from query.alerts.mutes import Mute, MuteSubject
from query.alerts.store import AlertStore
from query.webhooks.deliveries import DELIVERED, MUTED, REQUESTED, Attempt, DeliveryStore
from query.webhooks.delivery import WebhookDelivery
from query.webhooks.payloads import AlertEvent
from query.webhooks.queues import RetryPolicy
from query.webhooks.resolver import ResolverBusy
from query.webhooks.sending import TargetReply, WebhookSender
from query.webhooks.signature import new_secret
from query.webhooks.targets import TargetPolicy
from query.webhooks.webhooks import Webhook
from tests.unit.test_webhook_editor import Table, editor

NOW = 1_796_000_000_000
"""By the clock of ClickHouse."""


class Store(DeliveryStore):
    """Alerts and attempts, with ClickHouse's clock."""

    def __init__(self) -> None:
        self.events: list[AlertEvent] = []
        self.attempts: list[Attempt] = []
        self.clock_ms = NOW

    def now_ms(self) -> int:
        return self.clock_ms

    def add(self, attempts: Sequence[Attempt]) -> None:
        self.attempts += attempts

    def read_events(self, since_ms: int) -> list[AlertEvent]:
        return [event for event in self.events if event.at_ms >= since_ms]

    def latest_of_alerts(self, ids: Sequence[str]) -> list[Attempt]:
        return list({attempt.id: attempt for attempt in self.attempts}.values())

    def unfinished_since(self, since_ms: int, outcomes: Sequence[str]) -> list[Attempt]:
        return [attempt for attempt in self.latest_of_alerts([]) if attempt.outcome == REQUESTED]

    def events_of_alerts(self, ids: Sequence[str]) -> list[AlertEvent]:
        return [event for event in self.events if event.alert.id in ids]

    def failing(self) -> dict[str, tuple[int, int]]:
        return {}


class Mutes(AlertStore):
    """Campaigns that are muted for an hour."""

    def __init__(self) -> None:
        self.campaigns = list[int]()

    def mutes(self, now_ms: int, advertisers: Sequence[int] | None = None) -> list[Mute]:
        return [Mute(MuteSubject("", 3, campaign), now_ms + HOUR_MS, "test", NOW, 1) for campaign in self.campaigns]


class Sender(WebhookSender):
    """Takes each message, once the resolver has been busy so many times."""

    def __init__(self, busy: int = 0) -> None:
        super().__init__(TargetPolicy())
        self.busy, self.sent = busy, list[str]()

    async def post(self, url: str, body: bytes, headers: Any, advertiser: int = 0) -> TargetReply:
        if self.busy:
            self.busy -= 1
            raise ResolverBusy("no thread")
        self.sent.append(headers["webhook-id"])
        return TargetReply(200, 1)


def event(number: int, at_ms: int, campaign: int = 7) -> AlertEvent:
    alert = Alert(f"al_{number}", 1, "budget", "warning", "open", 3, campaign, NOW, 0, "")
    return AlertEvent(alert, "alert.opened", at_ms)


def deliver(store: Store, sender: Sender, ahead_ms: int, then: Callable[[], None], mutes: Mutes | None = None) -> None:
    """Run the loop on a machine whose clock is ahead of ClickHouse's, until `then` returns, which is called in a thread."""
    webhook = Webhook(
        "wh_1", 3, "https://a.example/", "", [], "standard", new_secret(), "", 0, True, "", 1, NOW, False, 1
    )
    stopping, table = threading.Event(), Table(webhook)
    loop = WebhookDelivery(
        table, store, mutes or Mutes(), editor(table, deliveries=None), sender, RetryPolicy(), address="", now=lambda: store.clock_ms + ahead_ms,
        actor="notify-0", log=logs.get("test"), poll_s=0.01,
    )  # fmt: skip

    async def run() -> None:
        running = asyncio.create_task(loop.run(stopping))
        try:
            await asyncio.to_thread(then)
        finally:
            stopping.set()
            await running

    asyncio.run(run())


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(1_000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize("ahead_ms", [0, 5 * MINUTE_MS, 3 * HOUR_MS, 2 * DAY_MS, -5 * MINUTE_MS, -2 * DAY_MS])
def test_alerts_are_read_by_the_clock_that_wrote_them_however_far_off_the_workers_is(ahead_ms: int) -> None:
    store, sender = Store(), Sender()
    store.events.append(event(1, NOW))

    def write_another() -> None:
        wait_for(lambda: len(store.attempts) == 1)
        store.clock_ms += 10 * MINUTE_MS
        wait_for(lambda: len(store.attempts) == 1)
        store.events.append(event(2, store.clock_ms))
        wait_for(lambda: len(store.attempts) == 2)

    deliver(store, sender, ahead_ms, write_another)
    assert sender.sent == ["al_1_1", "al_2_1"]
    assert [attempt.outcome for attempt in store.attempts] == [DELIVERED] * 2
    assert [(attempt.began_ms, attempt.at_ms) for attempt in store.attempts] == [
        (NOW, NOW),
        (NOW + 10 * MINUTE_MS,) * 2,
    ]


def test_a_message_whose_lookup_could_not_begin_is_sent_later_and_no_attempt_is_recorded() -> None:
    store, sender = Store(), Sender(busy=3)
    store.events.append(event(1, NOW))
    deliver(store, sender, 0, lambda: wait_for(lambda: bool(store.attempts)))
    assert sender.sent == ["al_1_1"]
    assert [(attempt.attempt, attempt.outcome) for attempt in store.attempts] == [(1, DELIVERED)]


def test_a_muted_alert_is_recorded_and_not_sent_unless_somebody_asks_for_it() -> None:
    store, sender, mutes = Store(), Sender(), Mutes()
    mutes.campaigns.append(7)
    store.events += [event(1, NOW), event(2, NOW, campaign=8)]

    def unmute_and_replay() -> None:
        wait_for(lambda: len(store.attempts) == 2)
        mutes.campaigns.clear()
        store.events.append(event(3, NOW))
        wait_for(lambda: len(store.attempts) == 3)
        mutes.campaigns.append(7)
        (skipped,) = [attempt for attempt in store.attempts if attempt.outcome == MUTED]
        assert skipped.problem.startswith("muted until ")
        store.attempts.append(msgspec.structs.replace(skipped, attempt=2, outcome=REQUESTED))
        wait_for(lambda: len(store.attempts) == 5)

    deliver(store, sender, 0, unmute_and_replay, mutes)
    assert sender.sent == ["al_2_1", "al_3_1", "al_1_1"]
    outcomes = [(attempt.alert_id, attempt.outcome) for attempt in store.attempts]
    assert sorted(outcomes[:2]) == [("al_1", MUTED), ("al_2", DELIVERED)]
    assert outcomes[2:] == [("al_3", DELIVERED), ("al_1", REQUESTED), ("al_1", DELIVERED)]
