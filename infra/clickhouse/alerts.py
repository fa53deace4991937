"""The outbox of alerts: written by whatever raises them, read by the HTTP interface and by deliveries.

An alert is a series of versions: opened, worsened, closed, withdrawn. Each is written at least once and counts once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from infra.clickhouse.client import ClickHouse

TABLE = "alerts"
SEVERITIES = ("warning", "critical")
STATES = ("open", "closed", "withdrawn")
"""`withdrawn`: late numbers have shown that there was nothing to tell."""
NOBODY = 0
"""The advertiser of alerts that are the operator's, and the campaign of those that are about none."""


@dataclass(frozen=True)
class Alert:
    """One version of an alert.

    `opened_ms` and `ended_ms`: event time of what it is about; `ended_ms` is 0 while it is open. `summary`: one sentence. `detail`: the
    numbers that led to it, to be encoded as JSON.
    """

    id: str
    version: int
    kind: str
    severity: str
    state: str
    advertiser_id: int
    campaign_id: int
    opened_ms: int
    ended_ms: int
    summary: str
    detail: dict[str, Any] = field(default_factory=dict)


def alert_id(kind: str, advertiser_id: int, campaign_id: int, occasion: str | int) -> str:
    """The id of an alert: the same for the same occasion, such as the minute in which it opened, however often it is found."""
    text = f"{kind}/{advertiser_id}/{campaign_id}/{occasion}"
    return f"al_{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def insert_alerts(client: ClickHouse, alerts: Sequence[Alert]) -> None:
    """Write versions of alerts. Safe to repeat. Raises Unavailable."""
    if not alerts:
        return
    names = [name for name in Alert.__dataclass_fields__ if name != "detail"]
    columns: dict[str, Any] = {name: [getattr(alert, name) for alert in alerts] for name in names}
    columns["detail"] = [json.dumps(alert.detail, separators=(",", ":"), sort_keys=True) for alert in alerts]
    client.insert(TABLE, pa.table(columns))


def read_newest(
    client: ClickHouse, condition: str, parameters: Mapping[str, Any], *, only_open: bool = False
) -> dict[str, Alert]:
    """The newest version of each alert, by id, of the versions that meet an SQL condition. Raises Unavailable."""
    names = tuple(Alert.__dataclass_fields__)
    newest = ", ".join(f"argMax({name}, version) AS {name}_" for name in names[1:])
    rows = client.rows(
        f"SELECT id, {newest} FROM {client.database}.{TABLE} WHERE {condition} GROUP BY id"
        + (" HAVING state_ = 'open'" if only_open else ""),
        dict(parameters),
    )
    alerts = (Alert(**dict(zip(names, row, strict=True)) | {"detail": json.loads(row[-1])}) for row in rows)
    return {alert.id: alert for alert in alerts}


def written_now_ms(client: ClickHouse) -> int:
    """The clock by which versions are written: clocks of machines differ. Raises Unavailable."""
    return int(client.rows("SELECT toUnixTimestamp64Milli(now64(3))")[0][0])
