"""`adclick canary`: sends a canary to each partition of ad-events, every few seconds.

A process of its own, with one right: to write to ad-events. It reads nothing and keeps nothing, so a second one, as while a
deployment is rolled out, only makes canaries come more often. Decision 0061 says more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from infra import logs
from infra.cli import declare
from infra.cli.app import App
from infra.clock import now_ms
from infra.errors import UserError
from infra.kafka import topics
from infra.kafka.probe_producer import ProbeProducer
from infra.kafka.records import Record
from infra.priority import BACKGROUND, give_way
from infra.settings import Settings
from infra.worker_process import stop_on_signals
from ingest.canary.marker import LONGEST_WAIT_S, encode_canary

# For so long a round waits for brokers; what they say later, the next one hears.
_ANSWER_S = 2.0


class CanarySender(Protocol):
    """What canaries are sent with: `ProbeProducer`."""

    def send(self, records: Iterable[Record], wait_s: float) -> tuple[int, str]:
        """Returns how many were acknowledged, and why another one was not."""


class CanaryWorker:
    """Sends rounds of canaries. `run` blocks until `stop` is called from a signal handler or another thread."""

    def __init__(self, settings: Settings, sender: CanarySender, now: Callable[[], int] = now_ms) -> None:
        self._topic, self._partitions = settings.topic(topics.EVENTS), settings.event_partitions
        self._every_s, self._sender, self._now = settings.canary_s, sender, now
        self._log = logs.get("canary")
        self._stopping = threading.Event()
        self._failing = ""

    def stop(self) -> None:
        """Return from `run`."""
        self._stopping.set()

    def run(self) -> None:
        """Send a round every so many seconds. A broker that is away is no error: that canaries do not arrive is what they are for."""
        self._log.info("sending canaries", topic=self._topic, partitions=self._partitions, every_s=self._every_s)
        while not self._stopping.is_set():
            began = time.monotonic()
            self._send_round()
            self._stopping.wait(max(0.0, self._every_s - (time.monotonic() - began)))

    def _send_round(self) -> None:
        value, headers = encode_canary(self._now())
        records = [Record(self._topic, value, partition=p, headers=headers) for p in range(self._partitions)]
        acknowledged, refusal = self._sender.send(records, min(_ANSWER_S, self._every_s / 2))
        if refusal and not self._failing:
            self._log.warning("canaries are not delivered", acknowledged=acknowledged, why=refusal)
        if self._failing and acknowledged and not refusal:
            self._log.info("canaries are delivered again")
        self._failing = refusal or ("" if acknowledged else self._failing)


@declare.command("canary", "ADCLICK_KAFKA=broker:9092 ADCLICK_CANARY_S=5 adclick canary")
def canary(app: App) -> None:
    """Send a canary to each partition of ad-events every ADCLICK_CANARY_S seconds, until stopped.

    Canaries go the whole way and count nowhere. Their age in each tier is in adclick status, /v1/pipeline and /metrics.
    """
    settings = app.settings
    if not settings.canary_s:
        raise UserError("canaries are off: canary_s is 0", hint="ADCLICK_CANARY_S says how often one is sent")
    if settings.passive == "on":
        # They would pass for events of the region that this one follows, and hide that its copy has stopped.
        raise UserError(
            "a region that follows another one gets that one's canaries, and sends none (ADCLICK_PASSIVE=on)",
            hint="ADCLICK_CANARY_S=0 here, or ADCLICK_PASSIVE=off once this region is promoted",
        )
    logs.configure(verbose=app.verbose, quiet=app.quiet)
    give_way(BACKGROUND)
    # A canary that waits for longer is followed by a newer one.
    timeout_s = min(2.0 * settings.canary_s, LONGEST_WAIT_S)
    worker = CanaryWorker(settings, ProbeProducer(settings.kafka_connection, timeout_s))
    stop_on_signals(worker)
    worker.run()
