"""The OpenAPI document of webhooks: bodies and answers."""

from __future__ import annotations

from typing import Any

from ingest.events import MAX_INT
from query.api.keys import LONGEST_GRACE_S
from query.api.webhooks import KIND_PATTERN, MAX_DESCRIPTION_CHARACTERS, MAX_KINDS
from query.webhooks.deliveries import OUTCOMES
from query.webhooks.payloads import FORMATS
from query.webhooks.targets import MAX_URL_CHARACTERS

_INSTANT = {"type": "string", "format": "date-time"}
_OPTIONAL_INSTANT = {"type": ["string", "null"], "format": "date-time"}
_ROWS = {"type": "integer", "minimum": 0}
_URL = {"type": "string", "maxLength": MAX_URL_CHARACTERS, "pattern": r"^https?://[!-~]+$"}
_DESCRIPTION = {"type": "string", "maxLength": MAX_DESCRIPTION_CHARACTERS, "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$"}
_KINDS = {
    "type": "array", "maxItems": MAX_KINDS, "items": {"type": "string", "pattern": KIND_PATTERN},
    "description": "of alerts; empty: all",
}  # fmt: skip
_FORMAT = {"type": "string", "enum": list(FORMATS)}
ID = {
    "name": "id", "in": "path", "required": True, "description": "the id of a webhook", "schema": {"type": "string", "minLength": 1},
    "example": "wh_5f0c9a2b3d1e4f60",
}  # fmt: skip
DELIVERY_ID = ID | {"description": "the id of a delivery", "example": "de_0f1e2d3c4b5a69788796"}
OF_ADVERTISER = {
    "name": "advertiser_id", "in": "query", "description": "of an advertiser; 0: of the operator",
    "schema": {"type": "integer", "minimum": 0, "maximum": MAX_INT}, "example": 3,
}  # fmt: skip


def _body(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "additionalProperties": False, "required": required, "properties": properties}
    return {"required": bool(required), "content": {"application/json": {"schema": schema}}}


REQUEST = _body(
    {
        "url": _URL,
        "advertiser_id": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_INT, "description": "left out: of the operator's alerts"},
        "description": _DESCRIPTION,
        "kinds": _KINDS,
        "format": _FORMAT | {"default": FORMATS[0]},
    },
    ["url"],
)  # fmt: skip
CHANGE = _body(
    {"url": _URL, "description": _DESCRIPTION, "kinds": _KINDS, "format": _FORMAT, "enabled": {"type": "boolean"}}, []
)
ROTATE = _body(
    {
        "grace_s": {
            "type": "integer", "minimum": 0, "maximum": LONGEST_GRACE_S, "default": 0,
            "description": "for how long messages are signed with the former secret, too",
        }
    },
    [],
)  # fmt: skip
_WEBHOOK = {
    "id": {"type": "string"},
    "advertiser_id": {"type": ["integer", "null"], "description": "null: of the operator's alerts"},
    "url": {"type": "string"},
    "description": {"type": "string"},
    "kinds": _KINDS,
    "format": _FORMAT,
    "enabled": {"type": "boolean"},
    "disabled_why": {"type": ["string", "null"], "description": "where it took no message for a day: the last problem"},
    "created_at": _INSTANT,
    "former_secret_until": _OPTIONAL_INSTANT,
}
WEBHOOK = {"type": "object", "required": list(_WEBHOOK), "properties": _WEBHOOK}
WEBHOOK_WITH_SECRET = {
    "type": "object",
    "required": [*_WEBHOOK, "secret"],
    "properties": _WEBHOOK | {"secret": {"type": "string", "description": "it is not shown again"}},
}
_ATTEMPT = {
    "id": {"type": "string", "description": "of the delivery: all attempts to send the message to the webhook have it"},
    "webhook_id": {"type": "string"},
    "message_id": {"type": "string", "description": "the header webhook-id"},
    "alert_id": {"type": ["string", "null"], "description": "null: a test"},
    "alert_version": {"type": ["integer", "null"]},
    "type": {"type": "string"},
    "attempt": {"type": "integer", "minimum": 1, "description": "requests for a message are numbered, too"},
    "at": _INSTANT,
    "outcome": {
        "type": "string",
        "enum": list(OUTCOMES),
        "description": "failed: it is tried again; muted: it was not sent",
    },
    "status": {"type": ["integer", "null"], "description": "null: no response"},
    "elapsed_ms": {"type": ["integer", "null"]},
    "reply": {"type": "string", "description": "the first 500 bytes of the response's body"},
    "problem": {"type": ["string", "null"], "description": "why it failed, or until when its alert was muted"},
    "next_at": _OPTIONAL_INSTANT,
}
ATTEMPT = {"type": "object", "required": list(_ATTEMPT), "properties": _ATTEMPT}


def _listed(items: dict[str, Any]) -> dict[str, Any]:
    properties = {"data": {"type": "array", "items": items}, "rows": _ROWS}
    return {"type": "object", "required": ["data", "rows"], "properties": properties}


WEBHOOKS, ATTEMPTS = _listed(WEBHOOK), _listed(ATTEMPT)
