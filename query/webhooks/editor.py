"""Changes of webhooks, by routers and by the worker: each is made to the newest version, one at a time for each advertiser.

A lease in Redis orders them. Its number is the version that is written, so that a change that was held up counts less than a later one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import msgspec

from infra.redis.client import Redis
from query.webhooks.deliveries import Attempt, DeliveryStore
from query.webhooks.webhooks import MOST_OF_AN_ADVERTISER, Webhook, WebhookStore

_LEASE_S, _WAIT_S = 30, 5.0
_BUSY = "webhooks of this advertiser are being changed"


class TooManyWebhooks(Exception):
    """An advertiser has as many as it may have."""


class PendingTest(Exception):
    """A test of the webhook has been requested, and has not ended."""


class WebhookEditor:
    """Thread-safe. Every method may raise Unavailable."""

    def __init__(self, webhooks: WebhookStore, deliveries: DeliveryStore, redis: Redis, key_prefix: str) -> None:
        self._webhooks, self._deliveries, self._redis = webhooks, deliveries, redis
        self._prefix = f"{key_prefix}webhooks"

    def create(self, webhook: Webhook, actor: str, now_ms: int) -> None:
        """Write a new webhook. Raises TooManyWebhooks."""
        with self._exclusively(webhook.advertiser_id):
            of_advertiser = [w for w in self._webhooks.all() if w.advertiser_id == webhook.advertiser_id]
            if len(of_advertiser) >= MOST_OF_AN_ADVERTISER:
                raise TooManyWebhooks
            self._webhooks.write(webhook, "create", actor, now_ms)

    def change(
        self, webhook: Webhook, edit: Callable[[Webhook], Webhook], action: str, actor: str, now_ms: int
    ) -> Webhook | None:
        """Write what `edit` makes of the newest version of a webhook, and return it. Where `edit` returns what it was given, nothing
        is written; where the webhook is deleted by now, `edit` is not called, and None is returned."""
        with self._exclusively(webhook.advertiser_id) as fence:
            former = self._webhooks.find(webhook.id)
            if former is None:
                return None
            changed = edit(former)
            if changed == former:
                return former
            changed = msgspec.structs.replace(changed, version=max(fence, former.version + 1))
            self._webhooks.write(changed, action, actor, now_ms, former)
            return changed

    def disable(self, webhook: Webhook, why: str, actor: str, now_ms: int) -> bool:
        """Disable a webhook as it was read, unless it was changed or deleted since: its user's change counts. Returns whether it was."""

        disabled = False

        def edit(newest: Webhook) -> Webhook:
            nonlocal disabled
            disabled = newest.version == webhook.version and newest.enabled
            return msgspec.structs.replace(newest, enabled=False, disabled_why=why) if disabled else newest

        self.change(webhook, edit, "disable", actor, now_ms)
        return disabled

    def request_test(self, webhook: Webhook, attempt: Attempt) -> None:
        """Record the request of a test, of which a webhook has one at a time. Raises PendingTest."""
        with self._exclusively(webhook.advertiser_id):
            if self._deliveries.has_pending_test(webhook.id, webhook.since_ms, attempt.at_ms):
                raise PendingTest
            self._deliveries.add([attempt])

    @contextlib.contextmanager
    def _exclusively(self, advertiser: int) -> Iterator[int]:
        with self._redis.wait_for_lease(f"{self._prefix}:{advertiser}", _LEASE_S, _WAIT_S, _BUSY) as fence:
            yield fence
