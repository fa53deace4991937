"""The table `webhook_deliveries` in ClickHouse: what was sent to webhooks, and how that went. How far each webhook is follows from it."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa

from infra.clickhouse.alerts import Alert, written_now_ms
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS
from infra.structs import decodable
from query.webhooks.payloads import TEST_TYPE, AlertEvent, events_of

REQUESTED, DELIVERED, FAILED, GAVE_UP, MUTED = "requested", "delivered", "failed", "gave-up", "muted"
OUTCOMES = (REQUESTED, DELIVERED, FAILED, GAVE_UP, MUTED)
"""`failed`: it is tried again. `muted`: it was not sent, since its alert was muted when it was due."""


@decodable
class Attempt(msgspec.Struct, frozen=True):
    """An attempt to deliver a message to a webhook, or a request to do so. `attempt` numbers both, from 1. `alert_id`: of a test, its
    message's id. `began_ms`: when the series of attempts began; `next_ms`: when the next one is due, 0 for none. `status` 0: no response. `requested`: whether it was ever requested."""

    id: str
    webhook_id: str
    message_id: str
    alert_id: str
    alert_version: int
    type: str
    attempt: int
    outcome: str
    status: int
    elapsed_ms: int
    reply: str
    problem: str
    began_ms: int
    next_ms: int
    at_ms: int
    requested: bool = False


_COLUMNS = Attempt.__struct_fields__[:-2]
_SELECTED = f"{', '.join(_COLUMNS)}, toUnixTimestamp64Milli(at), max(outcome = '{REQUESTED}') OVER (PARTITION BY id)"
_TYPES: dict[str, Any] = {
    "alert_version": pa.uint32(), "attempt": pa.uint32(), "status": pa.uint16(), "elapsed_ms": pa.uint32(),
    "began_ms": pa.uint64(), "next_ms": pa.uint64(),
}  # fmt: skip
_ALERT = tuple(Alert.__dataclass_fields__)


def delivery_id(webhook_id: str, message_id: str) -> str:
    """The id of the deliveries of one message to one webhook."""
    return f"de_{hashlib.sha256(f'{webhook_id}/{message_id}'.encode()).hexdigest()[:20]}"


class DeliveryStore:
    """Every method may raise Unavailable."""

    def __init__(self, client: ClickHouse) -> None:
        self._client = client

    def now_ms(self) -> int:
        """The clock by which versions of alerts are written. All moments of deliveries, and `since_ms` of webhooks, are taken from it:
        clocks of machines differ, and these are compared with each other."""
        return written_now_ms(self._client)

    def add(self, attempts: Sequence[Attempt]) -> None:
        """Record attempts. Safe to repeat."""
        columns = {
            name: pa.array([getattr(attempt, name) for attempt in attempts], _TYPES.get(name, pa.string()))
            for name in _COLUMNS
        }
        moments = [dt.datetime.fromtimestamp(attempt.at_ms / 1000, dt.UTC) for attempt in attempts]
        self._client.insert(
            "webhook_deliveries", pa.table({**columns, "at": pa.array(moments, pa.timestamp("ms", "UTC"))})
        )

    def of_webhook(self, webhook_id: str, limit: int) -> list[Attempt]:
        """Attempts and requests, the newest first."""
        return self._read(
            "webhook_id = {webhook:String} ORDER BY at DESC, attempt DESC LIMIT {limit:UInt32}",
            webhook=webhook_id,
            limit=limit,
        )

    def latest(self, id_: str) -> Attempt | None:
        """The last attempt of a delivery."""
        attempts = self._read("id = {id:String} ORDER BY attempt DESC, at DESC LIMIT 1", id=id_)
        return attempts[0] if attempts else None

    def latest_of_alerts(self, ids: Sequence[str]) -> list[Attempt]:
        """The last attempt of each delivery of these alerts."""
        if not ids:
            return []
        return self._read("alert_id IN {ids:Array(String)} ORDER BY attempt DESC, at DESC LIMIT 1 BY id", ids=list(ids))

    def unfinished_since(self, since_ms: int, outcomes: Sequence[str]) -> list[Attempt]:
        """The last attempts of deliveries, of those whose last one was then or later and had one of these outcomes."""
        recent = (
            f"id IN (SELECT id FROM {self._client.database}.webhook_deliveries WHERE at >= fromUnixTimestamp64Milli({{since:Int64}})"
            " AND outcome IN {outcomes:Array(String)}) ORDER BY attempt DESC, at DESC LIMIT 1 BY id"
        )
        attempts = self._read(recent, since=since_ms, outcomes=list(outcomes))
        return [attempt for attempt in attempts if attempt.outcome in outcomes and attempt.at_ms >= since_ms]

    def has_pending_test(self, webhook_id: str, since_ms: int, now_ms: int) -> bool:
        """Whether a test of a webhook was requested since a moment, and has not ended. After a day no worker sends it any more."""
        rows = self._client.rows(
            f"SELECT 1 FROM {self._client.database}.webhook_deliveries WHERE webhook_id = {{webhook:String}} AND type = '{TEST_TYPE}'"
            " AND at >= fromUnixTimestamp64Milli({since:Int64}) GROUP BY id"
            f" HAVING argMax(outcome, attempt) = '{REQUESTED}' LIMIT 1",
            {"webhook": webhook_id, "since": max(since_ms, now_ms - DAY_MS)},
        )
        return bool(rows)

    def failing(self) -> dict[str, tuple[int, int]]:
        """webhook → (first, last failed attempt since it last took a message), epoch ms. Tests do not count."""
        table = f"{self._client.database}.webhook_deliveries"
        rows = self._client.rows(
            "SELECT webhook_id, min(ms), max(ms) FROM"
            f" (SELECT webhook_id, outcome, type, toUnixTimestamp64Milli(at) AS ms FROM {table}) AS a INNER JOIN"
            f" (SELECT webhook_id, maxIf(toUnixTimestamp64Milli(at), outcome = '{DELIVERED}') AS taken_ms FROM {table}"
            " GROUP BY webhook_id) AS l USING (webhook_id)"
            f" WHERE outcome IN ('{FAILED}', '{GAVE_UP}') AND type != '{TEST_TYPE}' AND ms > taken_ms GROUP BY webhook_id"
        )
        return {webhook: (int(first), int(last)) for webhook, first, last in rows}

    def read_events(self, since_ms: int) -> list[AlertEvent]:
        """The versions of alerts that were written then or later, the oldest first."""
        of = f"id IN (SELECT id FROM {self._client.database}.alerts WHERE at >= fromUnixTimestamp64Milli({{since:Int64}}))"
        events = self._read_alerts(of, {"since": since_ms})
        return sorted((event for event in events if event.at_ms >= since_ms), key=lambda event: event.at_ms)

    def events_of_alerts(self, ids: Sequence[str]) -> list[AlertEvent]:
        """All versions of some alerts."""
        return self._read_alerts("id IN {ids:Array(String)}", {"ids": list(ids)}) if ids else []

    def _read(self, condition: str, **parameters: Any) -> list[Attempt]:
        rows = self._client.rows(
            f"SELECT {_SELECTED} FROM {self._client.database}.webhook_deliveries FINAL WHERE {condition}", parameters
        )
        return [Attempt(*row) for row in rows]

    def _read_alerts(self, condition: str, parameters: dict[str, Any]) -> list[AlertEvent]:
        rows = self._client.rows(
            f"SELECT {', '.join(_ALERT)}, toUnixTimestamp64Milli(at) FROM {self._client.database}.alerts FINAL"
            f" WHERE {condition} ORDER BY id, version",
            parameters,
        )
        versions: dict[str, list[tuple[Alert, int]]] = {}
        for *values, at_ms in rows:
            alert = Alert(**dict(zip(_ALERT, values, strict=True)) | {"detail": json.loads(values[-1])})
            versions.setdefault(alert.id, []).append((alert, int(at_ms)))
        return [event for of_alert in versions.values() for event in events_of(of_alert)]
