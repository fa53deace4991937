"""`adclick notify`, the worker: one of them evaluates rules and delivers alerts; others stand by, and one takes over where it ends.

A lease in Redis decides which one is active. One that loses it stops as soon as it sees that a later holder has a higher number.
Nothing depends on that being at once: alerts have stable ids, and a message that two workers send has the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

from infra import logs, migration
from infra.cli import declare
from infra.cli.app import App
from infra.clickhouse.client import ClickHouse
from infra.clock import now_ms
from infra.errors import AdclickError, LeaseLost, Unavailable, UserError
from infra.priority import BACKGROUND, give_way
from infra.redis.client import Redis
from infra.redis.leases import fence_key
from infra.retries import Sessions, pause_s
from infra.settings import Settings
from infra.worker_process import run_until_signal, worker_name
from query.alerts.store import AlertStore
from query.notify.rounds import Rounds
from query.notify.trends import TrendKeeper
from query.webhooks.deliveries import DeliveryStore
from query.webhooks.delivery import POLL_S, WebhookDelivery
from query.webhooks.editor import WebhookEditor
from query.webhooks.queues import RetryPolicy
from query.webhooks.sending import LIMIT_S, WebhookSender
from query.webhooks.targets import TargetPolicy
from query.webhooks.webhooks import WebhookStore

# How often a standby asks for the lease, and the active worker whether it still has it.
_STANDBY_S = 2.0
# A round that takes long is followed by a pause of so many times that: rules take a fifth of a core at most.
_REST = 4.0
_TICK_S = 0.2
# Trends of very many campaigns take longer than a minute: then they take a third of a core.
_TRENDS_EVERY_S, _REST_OF_TRENDS = 60.0, 2.0


class NotifyWorker:
    """One worker. `run` blocks until `stop` is called."""

    def __init__(
        self, settings: Settings, name: str, *, policy: RetryPolicy | None = None, now: Callable[[], int] = now_ms,
        pause: Callable[[int], float] = pause_s, limit_s: float = LIMIT_S, poll_s: float = POLL_S, rest: float = _REST,
    ) -> None:  # fmt: skip
        """`policy`: of messages that were not taken. `pause(failures)`: after so many lost sessions in a row, in s. `limit_s`: of a
        request to a target. `rest`: how many times its length a round is followed by a pause."""
        self._settings, self._name, self._now, self._limit_s, self._poll_s = settings, name, now, limit_s, poll_s
        self._rest = rest
        self._standby_s = min(_STANDBY_S, settings.notify_lease_s / 4)
        self._policy = policy or RetryPolicy()
        self._log = logs.get("notify").bind(worker=name)
        self._stopping = threading.Event()
        losses = (Unavailable, LeaseLost)
        self._sessions = Sessions(self._stopping, self._log, losses, time.monotonic, pause)
        self._redis, self._lease = Redis(settings.redis_access, timeout_s=3.0), f"{settings.key_prefix}notify"
        self.stands_by = False
        """Whether another worker was the active one when it was last looked."""
        self.rounds = 0
        """How often all rules were evaluated."""
        self.trends = 0
        """How often the lists of what trends were written."""

    def stop(self) -> None:
        """Finish what is under way, and return from `run`."""
        self._stopping.set()

    def run(self) -> None:
        """Be the active worker, or wait to become it, until stopped."""
        with contextlib.closing(self._redis):
            self._sessions.run(self._session)

    def _session(self) -> None:
        with contextlib.ExitStack() as held:
            try:
                lease = self._redis.lease(self._lease, self._settings.notify_lease_s, "another worker is active")
                fence = held.enter_context(lease)
            except UserError:
                if not self.stands_by:
                    self._log.info("standing by: another worker is active")
                self.stands_by = True
                self._sessions.works()
                self._stopping.wait(self._standby_s)
                return
            self.stands_by = False
            self._log.info("active", fence=fence)
            asyncio.run(self._serve(lambda: self._check_lease(fence)))

    def _check_lease(self, fence: int) -> None:
        """Raise LeaseLost where another worker holds the lease. While Redis is away, no other one can take it."""
        with contextlib.suppress(Unavailable):
            newest = self._redis.call("GET", fence_key(self._lease))
            if newest is None or int(newest) != fence:
                raise LeaseLost("another worker holds the lease of adclick notify")

    async def _serve(self, check_lease: Callable[[], None]) -> None:
        """Evaluate rules and deliver, side by side, until stopped or until one of them fails."""
        settings = self._settings
        client = ClickHouse.of(settings, timeout_s=30)
        webhooks, deliveries = WebhookStore(client), DeliveryStore(client)
        targets = TargetPolicy.of(settings.webhook_allowed_networks, settings.webhook_ports)
        delivery = WebhookDelivery(
            webhooks, deliveries, AlertStore(client), WebhookEditor(webhooks, deliveries, self._redis, settings.key_prefix),
            WebhookSender(targets, limit_s=self._limit_s), self._policy,
            address=settings.http, now=self._now, actor=self._name, log=self._log, poll_s=self._poll_s,
        )  # fmt: skip
        over = threading.Event()
        tasks = [
            asyncio.create_task(delivery.run(over)),
            asyncio.create_task(self._evaluate(check_lease)),
            asyncio.create_task(self._watch(check_lease)),
            asyncio.create_task(self._keep_trends(check_lease, over)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.set()
            for task in tasks[1:]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _evaluate(self, check_lease: Callable[[], None]) -> None:
        rounds = Rounds(self._settings, self._name, self._now, self._log)
        while True:
            began = time.monotonic()
            await asyncio.to_thread(rounds.run, check_lease)
            self._sessions.works()
            self.rounds += 1
            await asyncio.sleep(max(self._settings.notify_every_s, self._rest * (time.monotonic() - began)))

    async def _keep_trends(self, check_lease: Callable[[], None], over: threading.Event) -> None:
        """Refresh the lists of what trends. An error leaves them as they are, until they expire, and ends nothing else."""
        keeper, failing = TrendKeeper(self._settings, self._now, self._log), ""

        def check() -> None:
            if over.is_set():
                raise LeaseLost("the worker is to stop")
            check_lease()

        while True:
            began = time.monotonic()
            try:
                seconds = await asyncio.to_thread(keeper.refresh, check)
                self.trends += 1
                if failing:
                    self._log.info("trends are computed again", seconds=round(seconds, 1))
                failing = ""
            except LeaseLost:
                raise
            except Exception as error:
                if failing != type(error).__name__:
                    details = None if isinstance(error, AdclickError) else error
                    self._log.warning("trends are not computed", why=str(error), exc_info=details)
                failing = type(error).__name__
            took = time.monotonic() - began
            await asyncio.sleep(max(_TRENDS_EVERY_S - took, _REST_OF_TRENDS * took))

    async def _watch(self, check_lease: Callable[[], None]) -> None:
        """Return once the worker is to stop. Raises LeaseLost."""
        check_at = time.monotonic()
        while not self._stopping.is_set():
            if time.monotonic() >= check_at:
                await asyncio.to_thread(check_lease)
                check_at = time.monotonic() + self._standby_s
            await asyncio.sleep(_TICK_S)


@declare.command("notify", "ADCLICK_CLICKHOUSE=http://… ADCLICK_REDIS=redis://… adclick notify")
def notify(app: App) -> None:
    """Run one notify worker: write alerts about budgets, bills and the pipeline, and deliver them to webhooks."""
    logs.configure(verbose=app.verbose, quiet=app.quiet)
    give_way(BACKGROUND)
    migration.check_tables(app.settings)
    name = worker_name("notify")
    run_until_signal(NotifyWorker(app.settings, name), app.settings, name)
