"""The alerts that rules write: read, and written by version."""

from __future__ import annotations

import json
from collections.abc import Sequence

from infra import faults
from infra.clickhouse.alerts import Alert, insert_alerts
from infra.clickhouse.client import ClickHouse

_NAMES = tuple(Alert.__dataclass_fields__)


class Outbox:
    """The newest versions of alerts of some kinds, kept in memory once they are read: for as long as this process alone writes them.
    Every method may raise Unavailable; then what is in memory may be old."""

    def __init__(self, client: ClickHouse, kinds: Sequence[str]) -> None:
        self._client, self._kinds = client, list(kinds)
        self._known: dict[str, Alert] | None = None

    def current(self, ids: Sequence[str]) -> dict[str, Alert]:
        """The newest versions of all open ones, and of these."""
        if self._known is None:
            self._known = self._read("kind IN {kinds:Array(String)}", only_open=True, kinds=self._kinds)
        if missing := [id_ for id_ in ids if id_ not in self._known]:
            self._known |= self._read("id IN {ids:Array(String)}", only_open=False, ids=missing)
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

    def _read(self, condition: str, *, only_open: bool, **parameters: list[str]) -> dict[str, Alert]:
        newest = ", ".join(f"argMax({name}, version) AS {name}_" for name in _NAMES[1:])
        rows = self._client.rows(
            f"SELECT id, {newest} FROM {self._client.database}.alerts WHERE {condition} GROUP BY id"
            + (" HAVING state_ = 'open'" if only_open else ""),
            parameters,
        )
        alerts = (Alert(**dict(zip(_NAMES, row, strict=True)) | {"detail": json.loads(row[-1])}) for row in rows)
        return {alert.id: alert for alert in alerts}
