"""The OpenAPI document of alerts and mutes: bodies and answers."""

from __future__ import annotations

from typing import Any

from infra.clickhouse.alerts import SEVERITIES, STATES
from infra.clock import DAY_MS
from ingest.events import MAX_INT
from query.alerts.mutes import LONGEST_MS
from query.alerts.questions import KIND_PATTERN

KIND: dict[str, Any] = {"type": "string", "pattern": f"^{KIND_PATTERN}$"}
SEVERITY = {"type": "string", "enum": list(SEVERITIES)}
STATE = {"type": "string", "enum": list(STATES)}
_ID: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": MAX_INT}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_INSTANT = {"type": "string", "format": "date-time"}
_OPTIONAL_INSTANT = {"type": ["string", "null"], "format": "date-time"}
_BY = {"type": "string", "description": "key ID over HTTP, or a user of the operating system"}
_VARYING: dict[str, Any] = {
    "version": _COUNT | {"description": "from 1; a new one each time that it opens, worsens, closes or is withdrawn"},
    "severity": SEVERITY,
    "state": STATE | {"description": "withdrawn: late numbers have shown that there was nothing to tell"},
    "opened": _INSTANT | {"description": "event time"},
    "ended": _OPTIONAL_INSTANT | {"description": "event time; null while it is open"},
    "summary": {"type": "string", "description": "one sentence"},
    "detail": {"type": "object", "description": "the numbers that led to it"},
    "updated": _INSTANT | {"description": "when this version was written"},
}
_ALERT: dict[str, Any] = {
    "id": {"type": "string"},
    "kind": {"type": "string"},
    "campaign_id": _ID | {"description": "0: about no campaign"},
    "advertiser_id": _ID | {"description": "0: the operator's"},
    **_VARYING,
    "acknowledged": {
        "type": ["object", "null"],
        "required": ["version", "by", "at"],
        "properties": {"version": _COUNT, "by": _BY, "at": _INSTANT},
        "description": "of the newest version that was acknowledged",
    },
    "muted_until": _OPTIONAL_INSTANT,
}
ALERT = {"type": "object", "required": list(_ALERT), "properties": _ALERT}
ALERT_WITH_HISTORY = {
    "type": "object",
    "required": [*_ALERT, "history"],
    "properties": _ALERT
    | {
        "history": {
            "type": "array",
            "items": {"type": "object", "required": list(_VARYING), "properties": _VARYING},
            "description": "all versions, the oldest first",
        }
    },
}
ALERTS = {
    "type": "object",
    "required": ["data", "rows", "next_cursor"],
    "properties": {
        "data": {"type": "array", "items": ALERT},
        "rows": _COUNT,
        "next_cursor": {"type": ["string", "null"]},
        "as_of": {"type": "string", "description": "on the first page: the Last-Event-ID of a stream that goes on behind it"},
    },
}  # fmt: skip
_COUNTS: dict[str, Any] = {
    "kind": {"type": "string"},
    "alerts": _COUNT,
    "withdrawn": _COUNT | {"description": "late numbers have shown that there was nothing to tell"},
    "muted": _COUNT | {"description": "others that were muted while they were open"},
    "false_alarms": _COUNT | {"description": "withdrawn and muted ones"},
    "false_alarms_per_campaign_month": {"type": ["number", "null"], "description": "null where no campaign had events"},
}
_OF_KIND = {"type": "object", "required": list(_COUNTS), "properties": _COUNTS}
_SUMMARY = {
    "data": {"type": "array", "items": _OF_KIND},
    "rows": _COUNT,
    "total": _OF_KIND,
    "start": _INSTANT,
    "end": _INSTANT,
    "campaign_months": {"type": "number", "description": "28 days on which a campaign had events"},
}
SUMMARY = {"type": "object", "required": list(_SUMMARY), "properties": _SUMMARY}
_MUTE: dict[str, Any] = {
    "id": {"type": "string"},
    "kind": {"type": ["string", "null"], "description": "null: all kinds"},
    "advertiser_id": _ID | {"description": "0: the operator's"},
    "campaign_id": _ID | {"type": ["integer", "null"], "description": "null: all campaigns"},
    "until": _INSTANT,
    "by": _BY,
    "at": _INSTANT,
}
MUTE = {"type": "object", "required": list(_MUTE), "properties": _MUTE}
MUTES = {
    "type": "object",
    "required": ["data", "rows"],
    "properties": {"data": {"type": "array", "items": MUTE}, "rows": _COUNT},
}


def _path_id(what: str, example: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1}
    return {"name": "id", "in": "path", "required": True, "description": what, "schema": schema, "example": example}


ALERT_ID = _path_id("the id of an alert", "al_0123456789abcdef0123")
MUTE_ID = _path_id("the id of a mute", "mu_0123456789abcdef0123")
_ACKNOWLEDGE_REQUEST = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"version": _ID | {"type": ["integer", "null"], "description": "what was seen of it; by default the current one"}},
}  # fmt: skip
_MUTE_REQUEST = {
    "type": "object",
    "additionalProperties": False,
    "required": ["advertiser_id", "until"],
    "properties": {
        "advertiser_id": _ID,
        "campaign_id": _ID | {"type": ["integer", "null"], "description": "left out or null: all campaigns of the advertiser"},
        "kind": KIND | {"type": ["string", "null"], "description": "left out or null: all kinds"},
        "until": _INSTANT | {"description": f"RFC 3339 with an offset, {LONGEST_MS // DAY_MS} days ahead at most"},
    },
}  # fmt: skip
ACKNOWLEDGE_REQUEST = {"required": False, "content": {"application/json": {"schema": _ACKNOWLEDGE_REQUEST}}}
MUTE_REQUEST = {"required": True, "content": {"application/json": {"schema": _MUTE_REQUEST}}}
