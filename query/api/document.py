"""What the OpenAPI document says about parameters and answers. Parsing is `query.request`'s and `query.changes`'."""

from __future__ import annotations

from typing import Any

from ingest.events import MAX_INT
from query.api import problems
from query.formats import MEDIA_TYPES
from query.ledger import CAUSES
from query.request import DIMENSIONS, MAX_CAMPAIGNS, MAX_LIMIT, MEASURES, RATIOS

_TIME = {
    "type": "string",
    "pattern": r"^(now|-[0-9]{1,6}[mhd]|[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+ -][0-9]{2}:[0-9]{2}))$",
}
_ID = {"type": "integer", "minimum": 0, "maximum": MAX_INT}
_DIMENSION = {"type": "string", "enum": list(DIMENSIONS)}


def _parameter(name: str, schema: dict[str, Any], description: str, example: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema, "example": example} | more


def _list(items: dict[str, Any], most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": most}


_BY_COMMA = {"style": "form", "explode": False}
_CAMPAIGN = _parameter(
    "campaign_id", _list(_ID, MAX_CAMPAIGNS), "campaigns, several by comma; or give advertiser_id", [7], **_BY_COMMA
)
_ADVERTISER = _parameter("advertiser_id", _ID, "all campaigns of an advertiser", 3)
_ROWS = _parameter("limit", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT}, "rows at most", 100)
_CURSOR = _parameter("cursor", {"type": "string"}, "next_cursor of the page before; repeat the other parameters", None)
_FORMAT = _parameter(
    "format", {"type": "string", "enum": list(MEDIA_TYPES)},
    "rows alone as CSV, NDJSON or an Arrow stream, or JSON with everything about them; the Accept header says the same", "csv",
)  # fmt: skip

QUESTION = [
    _CAMPAIGN,
    _ADVERTISER,
    _parameter("start", _TIME, "RFC 3339 with an offset, now, or back from now like -24h; inclusive", "-24h", required=True),
    _parameter("end", _TIME, "the same; exclusive", "now", required=True),
    _parameter(
        "granularity", {"type": "string", "enum": ["minute", "hour", "day", "total", "auto"], "default": "auto"},
        "auto: the finest that gives at most 1,500 buckets and is still held", "hour",
    ),
    _parameter("group_by", _list(_DIMENSION, len(DIMENSIONS)), "by comma", ["country", "device"], **_BY_COMMA),
    _parameter(
        "filter", {"type": "array", "items": {"type": "string", "pattern": r"^[a-z_]+:.+$"}},
        "dimension:value,value; may be repeated, once for each dimension", ["country:US,DE"], style="form", explode=True,
    ),
    _parameter("timezone", {"type": "string", "default": "UTC"}, "IANA name; days reach back to the beginning of last month there", "Europe/Berlin"),
    _parameter("fill", {"type": "string", "enum": ["none", "zero"], "default": "none"}, "zero adds empty buckets", "zero"),
    _parameter(
        "order", {"type": "string", "enum": [s + c for c in ("time", *DIMENSIONS, *MEASURES, *RATIOS) for s in ("", "-")]},
        "a column of the answer; with a leading minus, descending", "-spend_micros",
    ),
    _ROWS,
    _CURSOR,
]  # fmt: skip
METRICS = [*QUESTION, _FORMAT]
LIVE = QUESTION
CHANGES = [
    _CAMPAIGN | {"description": "campaigns, several by comma; without, all that the key may see"},
    _ADVERTISER,
    _parameter("since", _TIME, "from when on: as_of of the answer before", "-1h", required=True),
    _parameter("granularity", {"type": "string", "enum": ["hour", "day"], "default": "hour"}, "of the buckets", "hour"),
    _ROWS,
    _CURSOR,
]

LEDGER = [
    _parameter("date", {"type": "string", "format": "date"}, "a day of UTC", "2026-11-20")
    | {"in": "path", "required": True},
    _CAMPAIGN | {"description": "campaigns, several by comma; without, all that the key may see"},
    _ADVERTISER,
    _parameter(
        "cause", _list({"type": "string", "enum": list(CAUSES)}, len(CAUSES)), "causes, by comma", ["late"], **_BY_COMMA
    ),
    _ROWS,
    _CURSOR,
]

_NUMBER: dict[str, Any] = {"type": "integer", "minimum": 0}
_INSTANT = {"type": "string", "format": "date-time"}
_FINALITY = {"type": "string", "enum": ["provisional", "closed", "corrected", "reconciled"]}
_ROW = {
    "type": "object",
    "required": ["time", *MEASURES, *RATIOS, "finality"],
    "properties": {
        "time": _INSTANT,
        **{d: {"type": "string" if d in ("country", "device") else "integer"} for d in DIMENSIONS},
        **dict.fromkeys(MEASURES, _NUMBER),
        **{r: {"type": ["integer" if r.endswith("micros") else "number", "null"]} for r in RATIOS},
        "finality": _FINALITY,
    },
}
_ANSWER = {
    "type": "object",
    "required": ["meta", "data", "rows", "next_cursor", "granularity", "currency", "finality", "watermark", "statistics", "warnings"],
    "properties": {
        "meta": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}, "type": {"type": "string"}}}},
        "data": {"type": "array", "items": _ROW},
        "rows": _NUMBER,
        "next_cursor": {"type": ["string", "null"]},
        "granularity": {"type": "string"},
        "currency": {"type": "string"},
        "finality": _FINALITY,
        "watermark": {"type": ["string", "null"]},
        "statistics": {"type": "object"},
        "warnings": {"type": "array", "items": {"type": "string"}},
    },
}  # fmt: skip
_CHANGED = {
    "type": "object",
    "required": ["data", "rows", "granularity", "next_cursor", "as_of"],
    "properties": {
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"time": _INSTANT, "campaign_id": _NUMBER, "finality": _FINALITY, "changed_at": _INSTANT},
            },
        },
        "rows": _NUMBER,
        "granularity": {"type": "string"},
        "next_cursor": {"type": ["string", "null"]},
        "as_of": _INSTANT,
    },
}
_OBJECT = {"type": "object"}
_AMOUNTS = {"type": "object", "properties": {m: {"type": "integer"} for m in MEASURES[:4]}}
_LEDGER = {
    "type": "object",
    "required": ["date", "run_id", "data", "rows", "next_cursor"],
    "properties": {
        "date": {"type": "string", "format": "date"},
        "run_id": {"type": "string"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "time": _INSTANT,
                    **dict.fromkeys(("campaign_id", "advertiser_id", "ad_id", "publisher_id"), _NUMBER),
                    "country": {"type": "string"},
                    "device": {"type": "string"},
                    "cause": {"type": "string", "enum": list(CAUSES)},
                    "share": _AMOUNTS | {"description": "what this cause adds to the stream's number"},
                    "stream": _AMOUNTS,
                    "exact": _AMOUNTS,
                },
            },
        },
        "rows": _NUMBER,
        "next_cursor": {"type": ["string", "null"]},
    },
}


_EXAMPLES = {
    400: ("bad-parameter", "no such parameter: granularty; did you mean granularity?", "granularty"),
    401: ("unauthorized", "send the header Authorization: Bearer KEY, with a key that is valid", None),
    403: ("forbidden", "this key may not see advertiser 9", "advertiser_id"),
    404: ("not-found", "there is no /v2/metrics; /docs lists what there is", None),
    405: ("method-not-allowed", "only GET, HEAD, OPTIONS, not POST", None),
    406: ("not-acceptable", "Accept allows none of application/json, text/csv", None),
    413: ("too-large", "requests need no body", None),
    414: ("too-long", "an address may have 32768 bytes", None),
    422: (
        "grain-not-held",
        "minute numbers from 2026-01-01T00:00:00Z on are no longer held; what would do: day",
        "granularity",
    ),
    429: ("too-many-requests", "this key may ask again in 3 s", None),
    503: ("unavailable", "nothing that can answer this is there at the moment: Redis: Connection refused", None),
}


def _answers(content: dict[str, Any], refusals: tuple[int, ...]) -> dict[int | str, dict[str, Any]]:
    found: dict[int | str, dict[str, Any]] = {}
    for status in refusals:
        kind, detail, parameter = _EXAMPLES[status]
        example = problems.Problem(status, kind, detail, parameter).body()
        told = {problems.MEDIA_TYPE: {"schema": problems.SCHEMA, "example": example}}
        found[status] = {"description": problems.TITLES[status], "content": told}
    return {200: {"description": "the answer", "content": content}} | found


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


_KEYED = (401, 403, 429, 503)
_ROWS_ALONE: dict[str, Any] = {m.partition(";")[0]: {"schema": {"type": "string"}} for m in MEDIA_TYPES.values()}
RESPONSES = {
    "metrics": _answers(_ROWS_ALONE | _json(_ANSWER), (400, 406, 413, 414, 422, *_KEYED))
    | {304: {"description": "what If-None-Match names is still right"}},
    "changes": _answers(_json(_CHANGED), (400, 406, 413, 414, 422, *_KEYED)),
    "ledger": _answers(_json(_LEDGER), (400, 404, 406, 413, 414, *_KEYED)),
    "live": _answers({"text/event-stream": {"schema": {"type": "string"}}}, (400, 413, 414, 422, *_KEYED)),
    "plain": _answers(_json(_OBJECT), _KEYED),
    "open": _answers(_json(_OBJECT), ()),
    "ready": _answers(_json(_OBJECT), ()) | {503: {"description": "what is not up", "content": _json(_OBJECT)}},
    "text": _answers({"text/plain": {"schema": {"type": "string"}}}, (401, 503)),
}
"""By route."""
SECURITY = {"key": {"type": "http", "scheme": "bearer", "description": "a key of `adclick keys create`"}}
