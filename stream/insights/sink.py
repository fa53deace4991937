"""Where the stage of insights shows its minutes: to the detector, and what that finds in the outbox of alerts.

Minutes are taken once they are closed, each once, in the order of time; those of which a shard has no rows are minutes without events.
What was known when a worker ended comes back from a checkpoint and the minutes since, which the state still holds: so the same
alerts come out again, with the same ids and versions, and those that were written already count once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from infra import faults, logs
from infra.clickhouse.alerts import TABLE, Alert, insert_alerts
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, MINUTE_MS, iso
from infra.errors import Unavailable
from ingest.partials import Partials
from stream.insights.alerting import Alerting, AlertPolicy
from stream.insights.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from stream.insights.rules import KINDS
from stream.insights.watch import Watch
from stream.published import Publication

# Minutes of a campaign before which nothing is said of it.
_LEARNED = 120
# After so many minutes without any event the next one is that of the next event: nothing can be learned from a standstill.
_MOST_EMPTY = 60
_FORGOTTEN_MS = 28 * DAY_MS


class InsightSink:
    """The detector and the alerts of one shard."""

    packs = False

    def __init__(self, client: ClickHouse, shard: int, policy: AlertPolicy) -> None:
        self._client, self._shard, self._policy = client, shard, policy
        self._watch, self._alerting = Watch(_LEARNED), Alerting(policy)
        self._upto_ms: int | None = None
        """The end of the last minute that was taken."""
        self._checkpoint_ms, self._slot = 0, 0
        self._empty = 0
        """How many minutes in a row were without any event."""
        self._unsent: list[Alert] = []
        self._attached = self._broken = False

    def attach(self, snapshot: Publication) -> None:
        """Go on from the last checkpoint, with the minutes since. Raises Unavailable."""
        self._attached = self._broken = False
        self._isolated(lambda: self._go_on(snapshot))
        self._attached = True

    def _go_on(self, snapshot: Publication) -> None:
        checkpoint, self._slot = read_checkpoint(self._client, self._shard)
        self._watch, self._alerting = Watch(_LEARNED), Alerting(self._policy)
        self._upto_ms, self._checkpoint_ms, self._empty, self._unsent = None, 0, 0, []
        if checkpoint is not None and self._decode(checkpoint):
            self._upto_ms = self._checkpoint_ms = checkpoint.upto_ms
            self._refuse_gap(snapshot.dropped_ms)
        self._take_closed(snapshot)
        self._send()
        self._withdraw_others()
        # The next flush may drop minutes before anything of it is shown.
        self._maybe_checkpoint(snapshot.settled_ms)

    def _decode(self, checkpoint: Checkpoint) -> bool:
        """Take over what is in a checkpoint; False for one that another version wrote."""
        try:
            watch, alerting = Watch(_LEARNED), Alerting(self._policy, checkpoint.alerting)
            watch.decode(checkpoint.watch)
        except ValueError as error:
            logs.get("stream").warning("the detector begins anew", shard=self._shard, why=str(error))
            return False
        self._watch, self._alerting = watch, alerting
        return True

    def _isolated(self, call: Callable[[], None]) -> None:
        """An error of the detector ends its alerts, until the worker starts again, and not the numbers that bills are made of."""
        try:
            call()
        except Unavailable:
            raise
        except Exception as error:
            logs.get("stream").error("the detector has stopped", shard=self._shard, why=str(error), exc_info=error)
            self._broken = True

    def write(self, published: Publication) -> bool:
        """Take what a flush has closed and corrected; False before the first `attach`. Raises Unavailable; safe to repeat."""
        if self._attached and not self._broken:
            self._isolated(lambda: self._show(published))
        return self._attached

    def _show(self, published: Publication) -> None:
        if not self._unsent:
            self._correct(published)
            self._take_closed(published)
        self._send()
        self._maybe_checkpoint(published.settled_ms)

    def refresh(self, sent_ms: int) -> bool:
        """There is nothing that could be lost."""
        return self._attached

    def pack(self, given_up: Callable[[], bool]) -> None:
        """Nothing."""

    def _refuse_gap(self, dropped_ms: int) -> None:
        """Minutes that the state no longer holds are unknown, and not without events: as when the table of checkpoints was restored."""
        if self._upto_ms is not None and self._upto_ms < dropped_ms // MINUTE_MS * MINUTE_MS:
            logs.get("stream").warning(
                "the detector has not seen some minutes",
                shard=self._shard,
                start=iso(self._upto_ms),
                end=iso(dropped_ms),
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
            self._unsent += self._take(at_ms, None if window is None else window.whole())
            self._upto_ms = at_ms + MINUTE_MS

    def _take(self, at_ms: int, rows: Partials | None) -> Iterator[Alert]:
        numbers = np.zeros((3, len(self._watch)))
        if rows is not None:
            places = self._watch.rows_of(rows["campaign_id"], rows["advertiser_id"])
            numbers = np.zeros((3, len(self._watch)))
            for number, name in enumerate(("impressions", "clicks", "spend_micros")):
                numbers[number, places] = rows[name]
        findings = self._watch.take(at_ms, *numbers)
        return self._alerting.take(at_ms, findings, self._watch.expecting)

    def _correct(self, published: Publication) -> None:
        for rows in published.corrections(whole=True):
            keys = zip(rows["campaign_id"].tolist(), rows["advertiser_id"].tolist(), strict=True)
            for row, key in enumerate(keys):
                if self._alerting.has(key):
                    numbers = (float(rows[name][row]) for name in ("impressions", "clicks", "spend_micros"))
                    self._unsent += self._alerting.correct(int(rows["window_ms"][row]), key, *numbers)

    def _send(self) -> None:
        if self._unsent:
            alerts = [_with_shard(alert, self._shard) for alert in self._unsent]
            faults.point("insights.found")
            insert_alerts(self._client, alerts)
            faults.point("insights.written")
            self._unsent = []
            self._checkpoint_ms = 0

    def _maybe_checkpoint(self, settled_ms: int) -> None:
        """Before the next flush drops minutes that the last checkpoint needs; and after each alert, so that minutes which late events
        have changed since are not judged again."""
        if self._upto_ms is None or self._checkpoint_ms >= max(settled_ms, 1):
            return
        self._watch.forget(self._upto_ms - _FORGOTTEN_MS)
        checkpoint = Checkpoint(self._upto_ms, self._watch.encode(), self._alerting.encode())
        write_checkpoint(self._client, self._shard, self._slot, checkpoint)
        self._checkpoint_ms, self._slot = self._upto_ms, 1 - self._slot
        faults.point("insights.checkpointed")

    def _withdraw_others(self) -> None:
        """Withdraw alerts of this shard that are open in the outbox, and not here: they opened after the checkpoint, in minutes that late
        events have changed since."""
        rows = self._client.rows(
            "SELECT id, max(version), argMax(tuple(kind, severity, advertiser_id, campaign_id, opened_ms, summary), version)"
            f" FROM {self._client.database}.{TABLE} WHERE kind IN {{kinds:Array(String)}}"
            " AND JSONExtractUInt(detail, 'shard') = {shard:UInt32}"
            " GROUP BY id HAVING argMax(state, version) = 'open'",
            {"kinds": list(KINDS), "shard": self._shard},
        )
        others = [row for row in rows if row[0] not in self._alerting.open_ids]
        withdrawn = [
            Alert(
                id_,
                version + 1,
                kind,
                severity,
                "withdrawn",
                advertiser,
                campaign,
                opened_ms,
                self._upto_ms or opened_ms,
                summary,
            )
            for id_, version, (kind, severity, advertiser, campaign, opened_ms, summary) in others
        ]
        if withdrawn:
            logs.get("stream").info("alerts withdrawn", count=len(withdrawn), upto=iso(self._upto_ms or 0))
        insert_alerts(self._client, [_with_shard(alert, self._shard) for alert in withdrawn])


def _with_shard(alert: Alert, shard: int) -> Alert:
    return Alert(
        **{name: getattr(alert, name) for name in Alert.__dataclass_fields__}
        | {"detail": alert.detail | {"shard": shard}}
    )
