"""What is still to be delivered, by webhook: which messages are due, how many at once, when a failed one is tried again, and when a
webhook has failed for too long. The loop that sends is `query.webhooks.delivery`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from infra.clock import DAY_MS, MINUTE_MS, iso
from infra.retries import pause_s
from query.webhooks.deliveries import DELIVERED, FAILED, GAVE_UP, MUTED, REQUESTED, Attempt, delivery_id
from query.webhooks.payloads import TEST_TYPE, AlertEvent
from query.webhooks.sending import KEPT_BYTES, TargetReply
from query.webhooks.webhooks import Webhook

AT_ONCE = 4
"""Messages under way to one webhook; one while it fails, so that a target that hangs holds little."""
AT_ONCE_OF_ADVERTISER = 8
"""Messages under way to all webhooks of an advertiser, so that targets that hang hold little of what all advertisers share."""


@dataclass(frozen=True)
class RetryPolicy:
    """A failed message is tried again after anything up to a limit that doubles from `first_s` to `longest_s`, until `for_ms` after the
    first attempt began. A webhook that has taken nothing for `disable_ms`, and failed for as long, is disabled: a little less, since
    the first failure comes with the end of an attempt."""

    first_s: float = 5.0
    longest_s: float = 3600.0
    for_ms: int = DAY_MS
    disable_ms: int = DAY_MS - 10 * MINUTE_MS
    pause: Callable[[int, float, float], float] = pause_s


@dataclass
class Delivery:
    """A message that a webhook has not taken yet. `event` None: a test. `attempts`: the number of the last one that is recorded."""

    id: str
    webhook_id: str
    message_id: str
    event: AlertEvent | None
    began_ms: int
    next_ms: int
    attempts: int = 0
    failures: int = 0
    requested: bool = False
    """Whether somebody has asked for it: then it is sent although its alert is muted."""
    under_way: bool = False
    advertiser: int = 0
    """On whose behalf it is under way."""

    @property
    def type(self) -> str:
        """Of the message."""
        return self.event.type if self.event is not None else TEST_TYPE


@dataclass
class _Queue:
    deliveries: dict[str, Delivery] = field(default_factory=dict)
    failing_since_ms: int = 0
    """When it first failed since it last took a message; 0 where it has not."""
    turn: int = 0
    """Numbers the messages that were sent; that of the last one to this webhook."""


class Queues:
    """Deliveries that are not finished. Knows neither clock nor store. Not thread-safe."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._webhooks: dict[str, Webhook] = {}
        self._queues: dict[str, _Queue] = {}
        # Finished lately: what was read before the end was recorded must not bring them back.
        self._finished: dict[str, Attempt] = {}
        # By advertiser, also of webhooks that are gone meanwhile.
        self._under_way, self._turns = Counter[int](), 0

    def __len__(self) -> int:
        return sum(len(queue.deliveries) for queue in self._queues.values())

    def set_webhooks(self, webhooks: Iterable[Webhook]) -> None:
        """The webhooks there are now. Deliveries to those that are gone, disabled or enabled again since are dropped."""
        self._webhooks = {webhook.id: webhook for webhook in webhooks if webhook.enabled}
        self._queues = {id_: self._queues.get(id_, _Queue()) for id_ in self._webhooks}
        for id_, queue in self._queues.items():
            since_ms = self._webhooks[id_].since_ms
            if queue.failing_since_ms < since_ms:
                queue.failing_since_ms = 0
            for delivery in [d for d in queue.deliveries.values() if d.began_ms < since_ms and not d.under_way]:
                del queue.deliveries[delivery.id]

    def set_failing(self, failing: dict[str, tuple[int, int]], now_ms: int) -> None:
        """Since when webhooks fail, by their first and last failed attempt since they last took a message. One that was not tried
        lately begins anew: that it failed before an outage of the worker says nothing of the time since."""
        for id_, (first_ms, last_ms) in failing.items():
            is_recent = now_ms - last_ms <= 2_000 * self._policy.longest_s
            if id_ in self._queues and first_ms >= self._webhooks[id_].since_ms and is_recent:
                self._queues[id_].failing_since_ms = first_ms

    def add_events(self, events: Sequence[AlertEvent], latest: Iterable[Attempt]) -> None:
        """Queue what webhooks want of events and have not got. `latest`: the last recorded attempt of each delivery of their alerts."""
        attempts = {attempt.id: attempt for attempt in latest}
        for event in events:
            for webhook in self._webhooks.values():
                id_ = delivery_id(webhook.id, event.message_id)
                if event.at_ms < webhook.since_ms or not webhook.wants(event.alert) or self._is_known(webhook.id, id_):
                    continue
                attempt = attempts.get(id_)
                if attempt is None:
                    self._queue(Delivery(id_, webhook.id, event.message_id, event, event.at_ms, 0))
                elif attempt.outcome in (FAILED, REQUESTED):
                    self._resume(attempt, event)

    def add_attempts(self, attempts: Iterable[Attempt], events: Iterable[AlertEvent]) -> None:
        """Queue what was asked for, or failed before. `events`: those that the attempts are about; a test has none."""
        by_message = {event.message_id: event for event in events}
        for attempt in attempts:
            event = by_message.get(attempt.message_id)
            webhook = self._webhooks.get(attempt.webhook_id)
            if webhook is None or attempt.began_ms < webhook.since_ms or (event is None and attempt.type != TEST_TYPE):
                continue
            present = self._queues[webhook.id].deliveries.get(attempt.id)
            finished = self._finished.get(attempt.id)
            if present is None:
                if finished is None or attempt.attempt > finished.attempt:
                    self._resume(attempt, event)
            elif attempt.outcome == REQUESTED and attempt.attempt > present.attempts:
                present.attempts, present.next_ms, present.failures = attempt.attempt, 0, 0
                present.began_ms, present.requested = attempt.began_ms, True

    def due(self, now_ms: int) -> list[tuple[Webhook, Delivery]]:
        """The messages to be sent now, of each webhook the oldest first. They count as under way until `finish` or `put_back`. Webhooks
        of an advertiser take turns: the one that was sent to the longest ago comes first."""
        chosen = list[tuple[Webhook, Delivery]]()
        candidates = {id_: _candidates(queue, now_ms) for id_, queue in self._queues.items() if queue.deliveries}
        order = sorted((id_ for id_ in candidates if candidates[id_]), key=lambda id_: self._queues[id_].turn)
        while order:
            for id_ in order:
                webhook = self._webhooks[id_]
                if self._under_way[webhook.advertiser_id] < AT_ONCE_OF_ADVERTISER:
                    chosen.append((webhook, self._start(candidates[id_].pop(0), webhook, now_ms)))
                else:
                    candidates[id_].clear()
            order = [id_ for id_ in order if candidates[id_]]
        return chosen

    def _start(self, delivery: Delivery, webhook: Webhook, now_ms: int) -> Delivery:
        delivery.under_way, delivery.advertiser = True, webhook.advertiser_id
        self._under_way[webhook.advertiser_id] += 1
        self._turns += 1
        self._queues[webhook.id].turn = self._turns
        if not delivery.attempts:
            delivery.began_ms = now_ms  # not when the alert was written: the worker may have been away
        return delivery

    def put_back(self, delivery: Delivery) -> None:
        """A message was not sent, for a reason that is not its target's: it is due as before, and nothing is counted."""
        delivery.under_way = False
        self._under_way[delivery.advertiser] -= 1

    def judge(self, delivery: Delivery, reply: TargetReply, now_ms: int) -> Attempt:
        """The attempt to be recorded: delivered, to be tried again, or given up."""
        outcome, next_ms = DELIVERED, 0
        if reply.problem:
            is_last = delivery.event is None or now_ms - delivery.began_ms >= self._policy.for_ms
            outcome = GAVE_UP if is_last else FAILED
            if not is_last:
                pause = self._policy.pause(delivery.failures, self._policy.first_s, self._policy.longest_s)
                next_ms = now_ms + round(pause * 1000)
        return self._attempt(delivery, outcome, reply, next_ms, now_ms)

    def skip_muted(self, delivery: Delivery, until_ms: int, now_ms: int) -> Attempt:
        """What is to be recorded of a message that is not sent, since its alert is muted until a moment."""
        return self._attempt(delivery, MUTED, TargetReply(0, 0, problem=f"muted until {iso(until_ms)}"), 0, now_ms)

    def _attempt(self, delivery: Delivery, outcome: str, reply: TargetReply, next_ms: int, now_ms: int) -> Attempt:
        alert = delivery.event.alert if delivery.event is not None else None
        return Attempt(
            delivery.id, delivery.webhook_id, delivery.message_id, alert.id if alert else delivery.message_id,
            alert.version if alert else 0, delivery.type, delivery.attempts + 1, outcome, reply.status, reply.elapsed_ms,
            reply.body[:KEPT_BYTES].decode(errors="replace"), reply.problem, delivery.began_ms, next_ms, now_ms,
        )  # fmt: skip

    def finish(self, delivery: Delivery, attempt: Attempt) -> bool:
        """An attempt is recorded. Returns whether its webhook is to be disabled, since it has failed for too long."""
        self.put_back(delivery)
        delivery.attempts = max(delivery.attempts, attempt.attempt)
        delivery.next_ms = attempt.next_ms
        queue = self._queues.get(delivery.webhook_id)
        if attempt.outcome != FAILED:
            self._finished[delivery.id] = attempt
        if queue is None:
            return False
        # A test may fail as often as it likes.
        has_failed = attempt.outcome in (FAILED, GAVE_UP) and delivery.event is not None
        if attempt.outcome == DELIVERED:
            queue.failing_since_ms = 0
        elif has_failed:
            delivery.failures += 1
            queue.failing_since_ms = queue.failing_since_ms or attempt.at_ms
        if attempt.outcome != FAILED:
            queue.deliveries.pop(delivery.id, None)
        return has_failed and attempt.at_ms - queue.failing_since_ms >= self._policy.disable_ms

    def forget_finished(self, before_ms: int) -> None:
        """Drop what was remembered of deliveries that were finished before a moment."""
        self._finished = {id_: attempt for id_, attempt in self._finished.items() if attempt.at_ms >= before_ms}

    def _is_known(self, webhook_id: str, id_: str) -> bool:
        return id_ in self._finished or id_ in self._queues[webhook_id].deliveries

    def _resume(self, attempt: Attempt, event: AlertEvent | None) -> None:
        self._queue(
            Delivery(
                attempt.id, attempt.webhook_id, attempt.message_id, event, attempt.began_ms, attempt.next_ms, attempt.attempt,
                failures=0 if attempt.outcome == REQUESTED else attempt.attempt, requested=attempt.requested or attempt.outcome == REQUESTED,
            )
        )  # fmt: skip

    def _queue(self, delivery: Delivery) -> None:
        self._queues[delivery.webhook_id].deliveries[delivery.id] = delivery


def _candidates(queue: _Queue, now_ms: int) -> list[Delivery]:
    """The messages that may be sent to a webhook now; of tests one at a time."""
    under_way = [d for d in queue.deliveries.values() if d.under_way]
    waiting = [d for d in queue.deliveries.values() if not d.under_way and d.next_ms <= now_ms]
    waiting.sort(key=lambda d: (d.next_ms > 0, d.began_ms, d.message_id))
    may_test = all(d.event is not None for d in under_way)
    test = next((d for d in waiting if d.event is None), None) if may_test else None
    allowed = [d for d in waiting if d.event is not None or d is test]
    return allowed[: max(0, (1 if queue.failing_since_ms else AT_ONCE) - len(under_way))]
