"""Changes of webhooks by several processes: each is made to the newest version, and the user's counts."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from infra.errors import Unavailable, UserError
from query.webhooks.deliveries import REQUESTED, Attempt, DeliveryStore
from query.webhooks.editor import PendingTest, TooManyWebhooks, WebhookEditor
from query.webhooks.webhooks import MOST_OF_AN_ADVERTISER, Webhook, WebhookStore
from tests.unit.fakes import FakeRedis

NOW = 1_796_000_000_000
WEBHOOK = Webhook("wh_1", 3, "https://a.example/h", "", [], "standard", "s1", "", 0, True, "", 1, 1, False, 1)


class Leases(FakeRedis):
    """Leases of one name at a time, with rising numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._held, self._numbers = dict[str, threading.Lock](), itertools.count(1_000)

    @contextlib.contextmanager
    def lease(self, name: str, seconds: int, busy: str) -> Iterator[int]:
        lock = self._held.setdefault(name, threading.Lock())
        if not lock.acquire(blocking=False):
            raise UserError(busy)
        try:
            yield next(self._numbers)
        finally:
            lock.release()


class Table(WebhookStore):
    """All versions that were written, of which the highest counts."""

    def __init__(self, *webhooks: Webhook) -> None:
        self.written: list[Webhook] = list(webhooks)

    def all(self) -> list[Webhook]:
        newest = {w.id: w for w in sorted(self.written, key=lambda w: w.version)}
        return [w for w in newest.values() if not w.deleted]

    def write(self, webhook: Webhook, *_: Any, **__: Any) -> None:
        self.written.append(webhook)


class Deliveries(DeliveryStore):
    """Requests of tests."""

    def __init__(self) -> None:
        self.requests: list[Attempt] = []

    def add(self, attempts: Any) -> None:
        self.requests += attempts

    def has_pending_test(self, webhook_id: str, since_ms: int, now_ms: int) -> bool:
        return any(r.webhook_id == webhook_id and r.at_ms >= since_ms for r in self.requests)


def editor(table: Table, redis: Leases | None = None, deliveries: Deliveries | None = None) -> WebhookEditor:
    return WebhookEditor(table, deliveries or Deliveries(), redis or Leases(), "adclick:")


def deleted(webhook: Webhook) -> Webhook:
    return msgspec.structs.replace(webhook, deleted=True, enabled=False, secret="")


def rotated(webhook: Webhook) -> Webhook:
    return msgspec.structs.replace(webhook, secret="s2", former_secret=webhook.secret)


def test_a_webhook_that_was_not_changed_since_it_was_read_is_disabled() -> None:
    table = Table(WEBHOOK)
    assert editor(table).disable(WEBHOOK, "answered 500", "notify-0", NOW)
    (newest,) = table.all()
    assert (newest.enabled, newest.disabled_why) == (False, "answered 500")
    assert not editor(table).disable(WEBHOOK, "answered 500", "notify-0", NOW)
    assert not editor(table).disable(newest, "answered 500", "notify-0", NOW)
    assert len(table.written) == 2


@pytest.mark.parametrize("change", [deleted, rotated])
def test_the_worker_disables_nothing_that_its_user_has_changed_since_it_was_read(change: Any) -> None:
    table = Table(WEBHOOK)
    changed = editor(table).change(WEBHOOK, change, "change", "key k", NOW)
    assert not editor(table).disable(WEBHOOK, "answered 500", "notify-0", NOW)
    assert table.written == [WEBHOOK, changed]


@pytest.mark.parametrize("change", [deleted, rotated])
def test_a_change_that_comes_while_another_is_written_waits_and_is_made_to_its_result(change: Any) -> None:
    table, redis = Table(WEBHOOK), Leases()
    has_read, goes_on = threading.Event(), threading.Event()

    def describe(webhook: Webhook) -> Webhook:
        has_read.set()
        assert goes_on.wait(10)
        return msgspec.structs.replace(webhook, description="ours")

    first = threading.Thread(target=lambda: editor(table, redis).change(WEBHOOK, describe, "change", "a", NOW))
    second = threading.Thread(target=lambda: editor(table, redis).change(WEBHOOK, change, "change", "b", NOW))
    first.start()
    assert has_read.wait(10)
    second.start()
    second.join(0.1)
    assert table.written == [WEBHOOK]
    goes_on.set()
    first.join(10)
    second.join(10)
    described = msgspec.structs.replace(WEBHOOK, description="ours")
    assert [msgspec.structs.replace(w, version=1) for w in table.written[1:]] == [described, change(described)]
    assert table.written[1].version < table.written[2].version


def test_a_deleted_webhook_is_not_changed() -> None:
    table = Table(WEBHOOK)
    editor(table).change(WEBHOOK, deleted, "delete", "a", NOW)
    assert editor(table).change(WEBHOOK, rotated, "rotate", "a", NOW) is None
    assert table.all() == [] and len(table.written) == 2


def test_the_number_of_the_lease_orders_versions_and_what_is_unchanged_is_not_written() -> None:
    table = Table(WEBHOOK)
    newest = editor(table).change(WEBHOOK, rotated, "rotate", "a", NOW)
    assert newest is not None and newest.version == 1_000
    assert editor(table).change(WEBHOOK, lambda webhook: webhook, "change", "a", NOW) == newest
    assert len(table.written) == 2


def test_a_change_waits_for_no_other_advertisers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("query.webhooks.editor._WAIT_S", 0.05)
    redis, table = Leases(), Table(WEBHOOK)
    with redis.lease("adclick:webhooks:4", 30, "busy"):
        assert editor(table, redis).disable(WEBHOOK, "answered 500", "notify-0", NOW)
    with redis.lease("adclick:webhooks:3", 30, "busy"), pytest.raises(Unavailable, match="being changed by another"):
        editor(table, redis).change(WEBHOOK, deleted, "delete", "a", NOW)


def test_an_advertiser_gets_no_more_webhooks_than_it_may_have() -> None:
    table = Table(*(msgspec.structs.replace(WEBHOOK, id=f"wh_{n}") for n in range(MOST_OF_AN_ADVERTISER - 1)))
    editor(table).create(msgspec.structs.replace(WEBHOOK, id="wh_last"), "a", NOW)
    with pytest.raises(TooManyWebhooks):
        editor(table).create(msgspec.structs.replace(WEBHOOK, id="wh_one_more"), "a", NOW)
    editor(table).create(msgspec.structs.replace(WEBHOOK, id="wh_other", advertiser_id=4), "a", NOW)


def test_a_test_is_refused_while_another_one_of_the_webhook_is_pending() -> None:
    deliveries = Deliveries()
    webhooks = editor(Table(WEBHOOK), deliveries=deliveries)

    def request(webhook: Webhook) -> None:
        webhooks.request_test(
            webhook, Attempt("d", webhook.id, "m", "m", 0, "webhook.test", 1, REQUESTED, 0, 0, "", "", NOW, 0, NOW)
        )

    request(WEBHOOK)
    with pytest.raises(PendingTest):
        request(WEBHOOK)
    request(msgspec.structs.replace(WEBHOOK, id="wh_2"))
    request(msgspec.structs.replace(WEBHOOK, since_ms=NOW + 1))  # enabled again since: no worker sends the former one
    assert len(deliveries.requests) == 3
