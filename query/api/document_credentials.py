"""The OpenAPI document of keys and tokens: bodies and answers."""

from __future__ import annotations

from typing import Any

from ingest.events import MAX_INT
from query.api.keys import BURST, LONGEST_GRACE_S, LONGEST_KEY_S, MAX_NAME_CHARACTERS, RATE
from query.token_purchase import MAX_IDS, SCOPES
from query.tokens import LONGEST_S

_IDS: dict[str, Any] = {
    "type": ["array", "null"], "items": {"type": "integer", "minimum": 0, "maximum": MAX_INT}, "minItems": 1, "maxItems": MAX_IDS,
}  # fmt: skip
_SCOPES = {"type": "array", "items": {"type": "string", "enum": list(SCOPES)}}
_INSTANT = {"type": "string", "format": "date-time"}
_ALLOWED = {
    "key": {"type": "string", "description": "the id of the key"},
    "advertisers": {"type": ["array", "null"], "items": {"type": "integer"}, "description": "null: all"},
    "campaigns": {"type": ["array", "null"], "items": {"type": "integer"}, "description": "null: all"},
    "scopes": _SCOPES,
    "expires_at": {"type": ["string", "null"], "format": "date-time"},
    "origin": {"type": ["string", "null"], "description": "the only origin whose pages may send the token; null: any"},
}

_TOKEN_REQUEST = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "advertisers": _IDS | {"description": "left out or null: those of the key"},
        "campaigns": _IDS | {"description": "left out or null: those of the key"},
        "scopes": _SCOPES | {"minItems": 1, "maxItems": 2, "default": ["read"]},
        "expires_in": {
            "type": ["integer", "null"], "minimum": 1, "maximum": LONGEST_S, "description": "seconds; an hour by default",
        },
        "origin": {
            "type": ["string", "null"], "maxLength": 300, "pattern": r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?$",
            "description": "the only origin whose pages may send the token; left out: any",
        },
    },
}  # fmt: skip
TOKEN_REQUEST = {"required": False, "content": {"application/json": {"schema": _TOKEN_REQUEST}}}
ISSUED = {
    "type": "object",
    "required": ["token", "id", *_ALLOWED],
    "properties": {"token": {"type": "string"}, "id": {"type": "string"}, **_ALLOWED, "expires_at": _INSTANT},
}
ACCESS = {
    "type": "object",
    "required": ["name", "admin", "token", "may_act_on_alerts", "currency", *_ALLOWED],
    "properties": {
        **_ALLOWED,
        "name": {"type": "string"},
        "admin": {"type": "boolean"},
        "token": {"type": "boolean", "description": "whether a token was sent, not the key itself"},
        "may_act_on_alerts": {
            "type": "boolean",
            "description": "whether it may acknowledge and mute the alerts that it sees",
        },
        "currency": {"type": "string"},
    },
}

KEY_ID = {
    "name": "id", "in": "path", "required": True, "description": "the id of a key", "schema": {"type": "string", "minLength": 1},
    "example": "1f0c9a2b3d",
}  # fmt: skip
_KEY_REQUEST = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "advertisers"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_CHARACTERS, "pattern": r"^[^\x00-\x1f\x7f-\x9f]*[!-~][^\x00-\x1f\x7f-\x9f]*$"},
        "advertisers": _IDS | {"description": "null: all"},
        "campaigns": _IDS | {"description": "left out or null: all"},
        "admin": {"type": "boolean", "default": False},
        "rate": {"type": "number", "minimum": 0.01, "maximum": 1e6, "default": RATE, "description": "requests a second, in the long run"},
        "burst": {"type": "number", "minimum": 1, "maximum": 1e7, "default": BURST, "description": "requests at once"},
        "expires_in": {"type": ["integer", "null"], "minimum": 1, "maximum": LONGEST_KEY_S, "description": "seconds; null: never"},
    },
}  # fmt: skip
_ROTATE_REQUEST = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "grace_s": {
            "type": "integer", "minimum": 0, "maximum": LONGEST_GRACE_S, "default": 0, "description": "how long the former secret works",
        },
    },
}  # fmt: skip
KEY_REQUEST = {"required": True, "content": {"application/json": {"schema": _KEY_REQUEST}}}
ROTATE_REQUEST = {"required": False, "content": {"application/json": {"schema": _ROTATE_REQUEST}}}
_OPTIONAL_INSTANT = {"type": ["string", "null"], "format": "date-time"}
_STORED = {
    "id": {"type": "string"},
    "name": {"type": "string"},
    "advertisers": _ALLOWED["advertisers"],
    "campaigns": _ALLOWED["campaigns"],
    "admin": {"type": "boolean"},
    "share": {"type": "boolean", "description": "whether it stands in a link to the dashboard"},
    "rate": {"type": "number"},
    "burst": {"type": "number"},
    "created_at": _INSTANT,
    "expires_at": _OPTIONAL_INSTANT,
    "revoked_at": _OPTIONAL_INSTANT,
    "state": {"type": "string", "enum": ["active", "expired", "revoked"]},
    "last_used_at": _OPTIONAL_INSTANT | {"description": "of other routers, up to a minute late"},
    "requests": {"type": "integer", "minimum": 0, "description": "of other routers, up to a minute late; about"},
}
KEY = {"type": "object", "required": list(_STORED), "properties": _STORED}
KEY_WITH_SECRET = {
    "type": "object",
    "required": [*_STORED, "key"],
    "properties": _STORED | {"key": {"type": "string", "description": "the key itself: it is not shown again"}},
}
_ROWS = {"type": "integer", "minimum": 0}
KEYS = {
    "type": "object",
    "required": ["data", "rows"],
    "properties": {"data": {"type": "array", "items": KEY}, "rows": _ROWS},
}
_ENTRY = {
    "at": _INSTANT,
    "actor": {"type": "string", "description": "a user of the operating system, or key ID over HTTP"},
    "action": {"type": "string"},
    "subject": {
        "type": "string",
        "description": "the id of a key; of the directory, campaign/7, say; of alerts, alert/ID or mute/ID",
    },
    "detail": {"type": "string"},
}
AUDIT = {
    "type": "object",
    "required": ["data", "rows"],
    "properties": {
        "data": {"type": "array", "items": {"type": "object", "required": list(_ENTRY), "properties": _ENTRY}},
        "rows": _ROWS,
    },
}
