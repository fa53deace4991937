"""Where the stage of insights shows its minutes: to the detector, and what that finds in the outbox of alerts.

Minutes are taken once all shards have closed them, each once, in the order of time; those without rows are minutes without events.
What was known when a worker ended comes back from a checkpoint and the minutes since, which the state still holds: so the same
alerts come out again, with the same ids and versions, and those that were written already count once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from infra import faults, logs
from infra.clickhouse.alerts import Alert, insert_alerts
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from infra.errors import is_away
from ingest.canary.arrivals import NO_CANARIES, Canaries
from ingest.partials import COUNTS, Partials
from stream.insights.alerting import Alerting, AlertPolicy
from stream.insights.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from stream.insights.outbox import read_written, versions_to_write
from stream.insights.rules import MEASURES
from stream.insights.watch import Watch
from stream.published import Publication

# Minutes of a campaign before which nothing is said of it.
_LEARNED = 120
# After so many minutes without any event the next one is that of the next event: nothing can be learned from a standstill.
_MOST_EMPTY = 60
# A campaign is watched from the first minute with so many events on; so an id that was made up costs nothing. One without events is
# forgotten after a while, soon where nothing is said of it yet.
_FEWEST_EVENTS, _MOST_CAMPAIGNS = 3, 250_000
_FORGOTTEN_MS, _UNLEARNED_MS = 28 * DAY_MS, 3 * HOUR_MS
# After an error that is no outage.
_RETRY_S = 60.0


class InsightSink:
    """The detector and the alerts of all campaigns."""

    packs = False

    def __init__(self, client: ClickHouse, policy: AlertPolicy, report: Callable[[str], None] = lambda _: None) -> None:
        """`report(why)` publishes that the detector has stopped, or with an empty text that it works."""
        self._client, self._policy, self._report = client, policy, report
        self._watch, self._alerting = Watch(_LEARNED), Alerting(policy, all_campaigns=True)
        self._upto_ms: int | None = None
        """The end of the last minute that was taken."""
        self._checkpoint_ms, self._slot = 0, 0
        self._empty = 0
        """How many minutes in a row were without any event."""
        self._unwritten: list[Alert] = []
        self._attached = self._broken = False
        self._retry_at = 0.0

    def attach(self, snapshot: Publication) -> None:
        """Go on from the last checkpoint, with the minutes since. Raises Unavailable."""
        self._attached = self._broken = False
        self._isolated(lambda: self._go_on(snapshot))
        self._attached = True
        if not self._broken:
            self._report("")

    def _go_on(self, snapshot: Publication) -> None:
        checkpoint, self._slot = read_checkpoint(self._client)
        self._watch, self._alerting = Watch(_LEARNED), Alerting(self._policy, all_campaigns=True)
        self._upto_ms, self._checkpoint_ms, self._empty, self._unwritten = None, 0, 0, []
        known = checkpoint is not None and self._decode(checkpoint)
        if checkpoint is not None and known:
            self._upto_ms = self._checkpoint_ms = checkpoint.upto_ms
            self._empty = checkpoint.empty
            self._refuse_gap(snapshot.dropped_ms)
        self._take_closed(snapshot)
        written = read_written(self._client)
        self._unwritten = versions_to_write(
            self._unwritten,
            written,
            self._alerting,
            self._upto_ms or 0,
            known_ms=self._checkpoint_ms if known else None,
        )
        self._write_alerts()
        # The next flush may drop minutes before anything of it is shown.
        self._maybe_checkpoint(snapshot.settled_ms)

    def _decode(self, checkpoint: Checkpoint) -> bool:
        """Take over what is in a checkpoint; False for one that another version wrote."""
        try:
            watch, alerting = Watch(_LEARNED), Alerting(self._policy, checkpoint.alerting, all_campaigns=True)
            watch.decode(checkpoint.watch)
        except ValueError as error:
            logs.get("stream").warning("the detector begins anew", why=str(error))
            return False
        self._watch, self._alerting = watch, alerting
        return True

    def _isolated(self, call: Callable[[], None]) -> None:
        """An error of the detector ends its alerts, until it is tried again, and not the numbers that bills are made of."""
        try:
            call()
        except Exception as error:
            # What answers and refuses, such as a table that may not be read, is nothing to wait for here.
            if is_away(error):
                raise
            logs.get("stream").error("the detector has stopped for now", why=str(error), exc_info=error)
            self._broken, self._retry_at = True, time.monotonic() + _RETRY_S
            self._report(str(error) or type(error).__name__)

    def prepare(self, published: Publication) -> None:
        """Nothing: the detector goes by what is in ClickHouse."""

    def write(self, published: Publication) -> bool:
        """Take what a flush has closed and corrected; False before the first `attach`, and a while after an error. Raises Unavailable; safe
        to repeat."""
        if self._broken:
            return time.monotonic() < self._retry_at
        if self._attached:
            self._isolated(lambda: self._show(published))
        return self._attached

    def _show(self, published: Publication) -> None:
        if not self._unwritten:
            self._correct(published)
            self._take_closed(published)
        self._write_alerts()
        self._maybe_checkpoint(published.settled_ms)

    def refresh(self, sent_ms: int, canaries: Canaries = NO_CANARIES) -> bool:
        """Whether the detector need not be tried again: there is nothing else that could be lost."""
        return self._attached and not (self._broken and time.monotonic() >= self._retry_at)

    def pack(self, given_up: Callable[[], bool]) -> None:
        """Nothing."""

    def _refuse_gap(self, dropped_ms: int) -> None:
        """Minutes that the state no longer holds are unknown, and not without events: as when the table of checkpoints was restored."""
        if self._upto_ms is not None and self._upto_ms < dropped_ms // MINUTE_MS * MINUTE_MS:
            logs.get("stream").warning(
                "the detector has not seen some minutes", start=iso(self._upto_ms), end=iso(dropped_ms)
            )
            self._upto_ms = dropped_ms // MINUTE_MS * MINUTE_MS

    def _take_closed(self, published: Publication) -> None:
        windows = {w.start: w for w in published.newly_closed if self._upto_ms is None or w.start >= self._upto_ms}
        if self._upto_ms is None:
            if not windows:
                return
            self._upto_ms = min(windows)
        closed_ms = published.closed_ms or 0
        while self._upto_ms + MINUTE_MS <= closed_ms:
            at_ms = self._upto_ms
            window = windows.pop(at_ms, None)
            self._empty = 0 if window is not None else self._empty + 1
            if self._empty > _MOST_EMPTY:
                self._upto_ms = min(windows, default=closed_ms // MINUTE_MS * MINUTE_MS)
                continue
            self._unwritten += self._take(at_ms, None if window is None else window.whole())
            self._upto_ms = at_ms + MINUTE_MS
            if len(self._watch) > _MOST_CAMPAIGNS:
                self._forget(self._upto_ms)

    def _forget(self, now_ms: int) -> None:
        """Drop campaigns of which nothing is heard any more, and where there are too many of them all but the last ones."""
        before = len(self._watch)
        most = round(0.9 * _MOST_CAMPAIGNS) if before > _MOST_CAMPAIGNS else None
        self._watch.forget(now_ms - _FORGOTTEN_MS, unlearned_before_ms=now_ms - _UNLEARNED_MS, most=most)
        if most is not None:
            logs.get("stream").warning("too many campaigns to watch", campaigns=before, kept=len(self._watch))

    def _take(self, at_ms: int, rows: Partials | None) -> Iterator[Alert]:
        numbers = np.zeros((3, len(self._watch)))
        if rows is not None:
            events = sum(rows[name].astype(np.int64) for name in COUNTS)
            places = self._watch.rows_of(rows["campaign_id"], rows["advertiser_id"], events >= _FEWEST_EVENTS)
            known, numbers = places >= 0, np.zeros((3, len(self._watch)))
            for number, name in enumerate(MEASURES):
                numbers[number, places[known]] = rows[name][known]
        findings = self._watch.take(at_ms, *numbers)
        return self._alerting.take(at_ms, findings, self._watch.expecting)

    def _correct(self, published: Publication) -> None:
        """Withdraw alerts that late events have undone, and open others that they have led to."""
        for window, rows in zip(published.corrected, published.corrections(whole=True), strict=True):
            keys = list(zip(rows["campaign_id"].tolist(), rows["advertiser_id"].tolist(), strict=True))
            numbers = [rows[name].astype(np.float64) for name in MEASURES]
            for row, key in enumerate(keys):
                if self._alerting.has(key):
                    self._unwritten += self._alerting.correct(window.start, key, *(float(c[row]) for c in numbers))
            if window.start < (self._upto_ms or 0):
                for key, finding in self._watch.judge(keys, window.start, *numbers):
                    self._unwritten += self._alerting.add_late(window.start, key, finding)

    def _write_alerts(self) -> None:
        if self._unwritten:
            faults.point("insights.found")
            insert_alerts(self._client, self._unwritten)
            faults.point("insights.written")
            self._unwritten = []
            self._checkpoint_ms = 0

    def _maybe_checkpoint(self, settled_ms: int) -> None:
        """Before the next flush drops minutes that the last checkpoint needs; and after each alert, so that minutes which late events
        have changed since are not judged again."""
        if self._upto_ms is None or self._checkpoint_ms >= max(settled_ms, 1):
            return
        self._forget(self._upto_ms)
        checkpoint = Checkpoint(self._upto_ms, self._watch.encode(), self._alerting.encode(), self._empty)
        write_checkpoint(self._client, self._slot, checkpoint)
        self._checkpoint_ms, self._slot = self._upto_ms, 1 - self._slot
        faults.point("insights.checkpointed")
