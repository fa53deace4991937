"""What a webhook is sent: the document of an alert's version, in the format that the webhook asks for. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.clickhouse.alerts import SEVERITIES, Alert
from infra.clock import iso

FORMATS = ("standard", "alertmanager")
TEST_TYPE = "webhook.test"
TYPES = ("alert.opened", "alert.worsened", "alert.closed", "alert.withdrawn")
# Alertmanager's own word for an alert that has not ended.
_NO_END = "0001-01-01T00:00:00Z"


@dataclass(frozen=True)
class AlertEvent:
    """A version of an alert that was written at `at_ms`, and what it is beside the one before."""

    alert: Alert
    type: str
    at_ms: int

    @property
    def message_id(self) -> str:
        """The same each time that the version is sent."""
        return f"{self.alert.id}_{self.alert.version}"


def events_of(versions: Sequence[tuple[Alert, int]]) -> list[AlertEvent]:
    """The versions of one alert, the first one first, each with the moment at which it was written, as events."""
    events = list[AlertEvent]()
    former: Alert | None = None
    for alert, at_ms in versions:
        events.append(AlertEvent(alert, _type_of(alert, former), at_ms))
        former = alert
    return events


def _type_of(alert: Alert, former: Alert | None) -> str:
    if alert.state != "open":
        return f"alert.{alert.state}"
    return "alert.worsened" if former is not None and former.state == "open" else "alert.opened"


def describe_alert(alert: Alert) -> dict[str, Any]:
    """An alert as it goes over HTTP."""
    return {
        "id": alert.id,
        "version": alert.version,
        "kind": alert.kind,
        "severity": alert.severity,
        "state": alert.state,
        "advertiser_id": alert.advertiser_id,
        "campaign_id": alert.campaign_id,
        "opened": iso(alert.opened_ms),
        "ended": iso(alert.ended_ms) if alert.ended_ms else None,
        "summary": alert.summary,
        "detail": alert.detail,
    }


def encode_event(event: AlertEvent, format_: str, address: str) -> bytes:
    """The body of a message. `address`: of the router."""
    document = _alertmanager(event.alert, address) if format_ == "alertmanager" else {
        "type": event.type, "timestamp": iso(event.at_ms), "data": describe_alert(event.alert),
    }  # fmt: skip
    return _encode(document)


def encode_test(webhook_id: str, at_ms: int, format_: str, address: str) -> bytes:
    """The body of a message that was asked for as a test."""
    if format_ == "alertmanager":
        summary = "This is a test of a webhook of adclick; nothing has happened."
        alert = Alert(f"test-{webhook_id}", 1, "webhook-test", SEVERITIES[0], "open", 0, 0, at_ms, 0, summary)
        return _encode(_alertmanager(alert, address))
    return _encode({"type": TEST_TYPE, "timestamp": iso(at_ms), "data": {"webhook_id": webhook_id}})


def _alertmanager(alert: Alert, address: str) -> dict[str, Any]:
    """Version 4 of what Alertmanager sends to webhooks, with one alert."""
    status = "firing" if alert.state == "open" else "resolved"
    labels = {"alertname": alert.kind, "severity": alert.severity}
    labels |= {name: str(value) for name in ("advertiser_id", "campaign_id") if (value := getattr(alert, name))}
    annotations = {"summary": alert.summary, "detail": json.dumps(alert.detail, separators=(",", ":"), sort_keys=True)}
    return {
        "version": "4",
        "groupKey": f'{{}}:{{alert="{alert.id}"}}',
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "adclick",
        "groupLabels": {"alertname": alert.kind},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": address,
        "alerts": [
            {
                "status": status,
                "labels": labels,
                "annotations": annotations,
                "startsAt": iso(alert.opened_ms),
                "endsAt": iso(alert.ended_ms) if alert.ended_ms else _NO_END,
                "generatorURL": address,
                "fingerprint": alert.id.removeprefix("al_")[:16],
            }
        ],
    }


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
