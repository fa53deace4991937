"""The alerts that rules write: read, and written by version."""

from __future__ import annotations

from collections.abc import Sequence

from infra import faults
from infra.clickhouse.alerts import Alert, insert_alerts, read_newest
from infra.clickhouse.client import ClickHouse


class Outbox:
    """The newest versions of alerts of some kinds, kept in memory once they are read: for as long as this process alone writes them.
    Every method may raise Unavailable; then what is in memory may be old."""

    def __init__(self, client: ClickHouse, kinds: Sequence[str]) -> None:
        self._client, self._kinds = client, list(kinds)
        self._known: dict[str, Alert] | None = None

    def current(self, ids: Sequence[str]) -> dict[str, Alert]:
        """The newest versions of all open ones, and of these."""
        if self._known is None:
            self._known = read_newest(
                self._client, "kind IN {kinds:Array(String)}", {"kinds": self._kinds}, only_open=True
            )
        if missing := [id_ for id_ in ids if id_ not in self._known]:
            self._known |= read_newest(self._client, "id IN {ids:Array(String)}", {"ids": missing})
        return dict(self._known)

    def open(self, kind: str) -> list[Alert]:
        """The open ones of a kind, the newest first."""
        alerts = [alert for alert in self.current([]).values() if alert.kind == kind and alert.state == "open"]
        return sorted(alerts, key=lambda alert: -alert.opened_ms)

    def write(self, changes: Sequence[Alert]) -> None:
        """Write new versions."""
        known, self._known = self.current([]), None
        insert_alerts(self._client, changes)
        if changes:
            faults.point("notify.written")
        # Those that have ended are read again should their conditions come back.
        newest = known | {alert.id: alert for alert in changes}
        self._known = {id_: alert for id_, alert in newest.items() if alert.state == "open"}
