"""The loop that delivers: reads what is new, sends what is due, and records each attempt before its message counts as delivered.

A message is sent at least once: a process that dies between sending and recording leaves it to be sent again, under the same id.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infra import faults
from infra.clock import HOUR_MS, MINUTE_MS
from infra.retries import patiently
from query.alerts.mutes import ActiveMutes
from query.alerts.store import AlertStore
from query.webhooks.deliveries import FAILED, REQUESTED, Attempt, DeliveryStore
from query.webhooks.editor import WebhookEditor
from query.webhooks.payloads import AlertEvent, encode_event, encode_test
from query.webhooks.queues import Delivery, Queues, RetryPolicy
from query.webhooks.resolver import ResolverBusy
from query.webhooks.sending import WebhookSender
from query.webhooks.signature import sign
from query.webhooks.webhooks import Webhook, WebhookStore

POLL_S = 2.0
_TICK_S = 0.2
# Rows become visible a little after the moment that they carry.
_OVERLAP_MS = MINUTE_MS
# Beyond the time in which a message is tried again.
_MARGIN_MS = 2 * HOUR_MS
# For what is under way when the worker stops; what is cut off is sent again.
_GRACE_S = 3.0


@dataclass(frozen=True)
class _News:
    """What was read of the tables. `at_ms`: when, and `ahead_ms`: how far the clock of ClickHouse was ahead of this machine's."""

    at_ms: int
    ahead_ms: int
    webhooks: list[Webhook]
    events: list[AlertEvent]
    latest: list[Attempt]
    unfinished: list[Attempt]
    events_of_unfinished: list[AlertEvent]
    failing: dict[str, tuple[int, int]] | None
    mutes: ActiveMutes


class WebhookDelivery:
    """Delivers until it is stopped. Lives for as long as the worker is the active one."""

    def __init__(
        self, webhooks: WebhookStore, deliveries: DeliveryStore, alerts: AlertStore, editor: WebhookEditor, sender: WebhookSender,
        policy: RetryPolicy, *, address: str, now: Callable[[], int], actor: str, log: Any, poll_s: float = POLL_S,
    ) -> None:  # fmt: skip
        """`alerts` has the mutes. `address`: of the router, for payloads. `now`: this machine's clock. `actor`: of what is audited."""
        self._webhooks, self._deliveries, self._alerts = webhooks, deliveries, alerts
        self._editor, self._sender, self._mutes = editor, sender, ActiveMutes(())
        self._policy, self._address, self._now, self._actor, self._log = policy, address, now, actor, log
        self._poll_s, self._queues = poll_s, Queues(policy)
        self._tasks: set[asyncio.Task[None]] = set()
        self._read_to_ms = self._ahead_ms = 0

    async def run(self, stopping: threading.Event) -> None:
        """Raises what a send raises that is no failure of its target."""
        try:
            await self._loop(stopping)
        finally:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_GRACE_S)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._sender.close()

    async def _loop(self, stopping: threading.Event) -> None:
        clock = asyncio.get_running_loop().time
        poll_at = clock()
        while not stopping.is_set():
            if clock() >= poll_at:
                self._take(await asyncio.to_thread(patiently, self._read, stopping, self._log))
                poll_at = clock() + self._poll_s
            for webhook, delivery in self._queues.due(self._stored_now()):
                task = asyncio.create_task(self._deliver(webhook, delivery, stopping))
                self._tasks.add(task)
            for task in [task for task in self._tasks if task.done()]:
                self._tasks.discard(task)
                task.result()
            await asyncio.sleep(_TICK_S)

    def _read(self) -> _News:
        """What is new since the last time; the first time, of as long as messages are tried again. Raises Unavailable."""
        own_ms = self._now()
        at_ms = self._deliveries.now_ms()
        is_first, webhooks = not self._read_to_ms, self._webhooks.all()
        reach_ms = self._policy.for_ms + _MARGIN_MS if is_first else _OVERLAP_MS
        since_ms = (at_ms if is_first else self._read_to_ms) - reach_ms
        if not any(webhook.enabled for webhook in webhooks):
            no_failures = dict[str, tuple[int, int]]() if is_first else None
            return _News(at_ms, at_ms - own_ms, webhooks, [], [], [], [], no_failures, self._mutes)
        events = self._deliveries.read_events(since_ms)
        latest = self._deliveries.latest_of_alerts(list({event.alert.id for event in events}))
        outcomes = (REQUESTED, FAILED) if is_first else (REQUESTED,)
        unfinished = self._deliveries.unfinished_since(since_ms, outcomes)
        about = self._deliveries.events_of_alerts(list({a.alert_id for a in unfinished if a.alert_version}))
        failing = self._deliveries.failing() if is_first else None
        # After the events: a mute that was set before an alert was raised is among them.
        mutes = ActiveMutes(self._alerts.mutes(own_ms))
        return _News(at_ms, at_ms - own_ms, webhooks, events, latest, unfinished, about, failing, mutes)

    def _take(self, news: _News) -> None:
        self._read_to_ms, self._ahead_ms, self._mutes = news.at_ms, news.ahead_ms, news.mutes
        self._queues.set_webhooks(news.webhooks)
        if news.failing is not None:
            self._queues.set_failing(news.failing, news.at_ms)
        self._queues.add_attempts(news.unfinished, news.events_of_unfinished)
        self._queues.add_events(news.events, news.latest)
        self._queues.forget_finished(news.at_ms - 10 * _OVERLAP_MS)

    def _muted_until(self, delivery: Delivery) -> int | None:
        """Until when the alert of a message is muted; None where it is to be sent: tests, and what was asked for, always are."""
        if delivery.event is None or delivery.requested:
            return None
        until_ms = self._mutes.until_ms(delivery.event.alert)
        return until_ms if until_ms is not None and until_ms > self._now() else None

    async def _deliver(self, webhook: Webhook, delivery: Delivery, stopping: threading.Event) -> None:
        if (until_ms := self._muted_until(delivery)) is not None:
            skipped = self._queues.skip_muted(delivery, until_ms, self._stored_now())
            await asyncio.to_thread(patiently, lambda: self._deliveries.add([skipped]), stopping, self._log)
            self._queues.finish(delivery, skipped)
            return
        now_ms = self._now()
        body = (
            encode_event(delivery.event, webhook.format, self._address)
            if delivery.event is not None
            else encode_test(webhook.id, delivery.began_ms, webhook.format, self._address)
        )
        headers = sign(delivery.message_id, now_ms, body, webhook.secrets_in_use(now_ms))
        try:
            reply = await self._sender.post(webhook.url, body, headers, webhook.advertiser_id)
        except ResolverBusy as busy:
            self._log.info("message put back", webhook=webhook.id, why=str(busy))
            self._queues.put_back(delivery)
            return
        faults.point("webhooks.sent")
        attempt = self._queues.judge(delivery, reply, self._stored_now())
        await asyncio.to_thread(patiently, lambda: self._deliveries.add([attempt]), stopping, self._log)
        if self._queues.finish(delivery, attempt):
            await asyncio.to_thread(patiently, lambda: self._disable(webhook, attempt.problem), stopping, self._log)

    def _disable(self, webhook: Webhook, problem: str) -> None:
        """Disable a webhook that has failed for too long, as it was when the message was sent."""
        if self._editor.disable(webhook, problem or "it failed", self._actor, self._now()):
            self._log.warning("webhook disabled: it took no message for a day", webhook=webhook.id, why=problem)

    def _stored_now(self) -> int:
        """The moment by the clock of ClickHouse, with whose moments in the tables it is compared."""
        return self._now() + self._ahead_ms
