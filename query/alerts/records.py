"""Versions of alerts as they are stored, with who has acknowledged them and until when they are muted; and as documents. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.clock import iso


@dataclass(frozen=True)
class AlertVersion:
    """A row of `alerts`. `ended_ms`: 0 while it is open. `detail`: JSON. `at_ms`: when the version was written."""

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
    detail: str
    at_ms: int


@dataclass(frozen=True)
class Acknowledgement:
    """Who has acknowledged an alert, at which version of it, and when."""

    version: int
    actor: str
    at_ms: int

    def document(self) -> dict[str, Any]:
        """As it goes over HTTP."""
        return {"version": self.version, "by": self.actor, "at": iso(self.at_ms)}


def describe_alert(
    alert: AlertVersion, acknowledgement: Acknowledgement | None, muted_until_ms: int | None
) -> dict[str, Any]:
    """A version of an alert as it goes over HTTP."""
    return {
        "id": alert.id, "version": alert.version, "kind": alert.kind, "severity": alert.severity, "state": alert.state,
        "campaign_id": alert.campaign_id, "advertiser_id": alert.advertiser_id, "opened": iso(alert.opened_ms),
        "ended": iso(alert.ended_ms) if alert.ended_ms else None, "summary": alert.summary, "detail": _decode(alert.detail),
        "updated": iso(alert.at_ms), "acknowledged": acknowledgement and acknowledgement.document(),
        "muted_until": None if muted_until_ms is None else iso(muted_until_ms),
    }  # fmt: skip


def describe_history(versions: Sequence[AlertVersion]) -> list[dict[str, Any]]:
    """All versions of an alert, the oldest first: what may differ between them."""
    return [
        {
            "version": v.version, "severity": v.severity, "state": v.state, "opened": iso(v.opened_ms),
            "ended": iso(v.ended_ms) if v.ended_ms else None, "summary": v.summary, "detail": _decode(v.detail),
            "updated": iso(v.at_ms),
        }
        for v in versions
    ]  # fmt: skip


def _decode(detail: str) -> dict[str, Any]:
    """The numbers that led to an alert; none where they are no JSON object. What JSON has no number for is null."""
    try:
        value = json.loads(detail, parse_constant=lambda _: None)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
