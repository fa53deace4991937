"""The OpenAPI document: parameters, answers and problems. `query.question`, `query.changes` and `query.ledger` do the parsing."""

from __future__ import annotations

from typing import Any

from ingest.events import MAX_INT, Reason
from ingest.partials import BILLED
from query.alerts.questions import MOST_LISTED, USUALLY_LISTED
from query.anomalies import GRAINS as GRAINS_OF_ANOMALIES
from query.anomalies import SEVERITIES
from query.api import document_alerts, document_bills, document_credentials, document_webhooks, problems
from query.api.directory import FILTERS
from query.comparison import COMPARISONS
from query.directory.entries import BUDGETS, KINDS, MAX_NAME_CHARACTERS, STATUSES, fields_of, required_of
from query.directory.snapshot import KIND_OF_DIMENSION, name_column
from query.finality import FINALITY
from query.formats import MEDIA_TYPES
from query.ledger import CAUSES as CAUSES_OF_LEDGER
from query.page import is_share
from query.parameters import MAX_CAMPAIGNS, MAX_LIMIT
from query.question import ALL_ADVERTISERS, DIMENSIONS, MEASURES, PREVIOUS, RATIOS, USERS
from query.question import CHANGES as CHANGE_COLUMNS
from query.reconciliations import MOST_DAYS, USUAL_DAYS
from query.statements.reader import FORMATS as STATEMENT_FORMATS
from query.top import DIMENSIONS as TOP_DIMENSIONS
from query.top import USUAL_GROUPS, USUAL_MEASURE, USUAL_RANGE
from query.trending import DIMENSIONS as TRENDING_DIMENSIONS
from query.trending import USUAL_VOLUME, VOLUMES

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
_CURSOR = _parameter(
    "cursor", {"type": "string"}, "next_cursor of the page before, with the other parameters unchanged", None
)
_FORMAT = _parameter(
    "format", {"type": "string", "enum": list(MEDIA_TYPES)},
    "rows alone as CSV, NDJSON or an Arrow stream, or the JSON document; the Accept header is the alternative", "csv",
)  # fmt: skip

QUESTION = [
    _CAMPAIGN,
    _ADVERTISER
    | {
        "description": "all campaigns of an advertiser; with an admin key, * for those of all",
        "schema": {"anyOf": [_ID, {"type": "string", "enum": [ALL_ADVERTISERS]}]},
    },
    _parameter("start", _TIME, "RFC 3339 with an offset, now, or back from now like -24h; inclusive", "-24h", required=True),
    _parameter("end", _TIME, "the same; exclusive", "now", required=True),
    _parameter(
        "granularity", {"type": "string", "enum": ["minute", "hour", "day", "total", "auto"], "default": "auto"},
        "auto: the finest that gives at most 1,500 buckets and is still retained", "hour",
    ),
    _parameter("group_by", _list(_DIMENSION, len(DIMENSIONS)), "by comma", ["country", "device"], **_BY_COMMA),
    _parameter(
        "filter", {"type": "array", "items": {"type": "string", "pattern": r"^[a-z_]+:.+$"}},
        "dimension:value,value; may be repeated, once for each dimension", ["country:US,DE"], style="form", explode=True,
    ),
    _parameter("timezone", {"type": "string", "default": "UTC"}, "IANA name; local days are retained from the beginning of last month on", "Europe/Berlin"),
    _parameter("fill", {"type": "string", "enum": ["none", "zero"], "default": "none"}, "zero adds empty buckets", "zero"),
    _parameter(
        "order",
        {"type": "string", "enum": [s + c for c in ("time", *DIMENSIONS, *MEASURES, *RATIOS, *USERS, *PREVIOUS, *CHANGE_COLUMNS) for s in ("", "-")]},
        "a column of the answer; with a leading minus, descending", "-spend_micros",
    ),
    _parameter("totals", {"type": "string", "enum": ["true", "false"], "default": "false"}, "true adds the total of all rows, of all pages", "true"),
    _parameter(
        "compare", {"type": "string", "enum": list(COMPARISONS)},
        "adds the numbers of an earlier range, and the change: previous, the same length, days or months before; week, seven days before",
        "previous",
    ),
    _parameter("top", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT}, "only rows of so many groups: those with the largest totals over the range, exactly", 10),
    _parameter("by", {"type": "string", "enum": list(MEASURES), "default": MEASURES[0]}, "with top: which measure is largest", "spend_micros"),
    _ROWS,
    _CURSOR,
]  # fmt: skip
QUESTION.append(
    _parameter(
        "names", {"type": "string", "enum": ["false", "true"], "default": "false"},
        "true adds the name of each id that rows are grouped by, from the directory; an id without an entry shows as its digits",
        "true",
    )
)  # fmt: skip
TOP = [
    _parameter("dimension", {"type": "string", "enum": list(TOP_DIMENSIONS), "default": "campaign"}, "what is listed", "ad"),
    _parameter("by", {"type": "string", "enum": list(MEASURES), "default": USUAL_MEASURE}, "the measure that is largest", "clicks"),
    _parameter("range", {"type": "string", "pattern": "^[0-9]{1,6}[mhd]$", "default": USUAL_RANGE}, "back from now", "1h"),
    _parameter("k", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": USUAL_GROUPS}, "groups at most", 50),
    _ADVERTISER | {"description": "whose; by default the only one that the key may see, or with an admin key all"},
]  # fmt: skip
AUDITED = [_ROWS | {"description": "changes at most; 100 by default"}]
_USERS = _parameter(
    "users", {"type": "string", "enum": ["false", "true"], "default": "false"},
    "true adds how many different users there were, about, and events by user: in hours, days or a total, by campaign_id or not at all",
    "true",
)  # fmt: skip
METRICS = [*QUESTION, _USERS, _FORMAT]
LIVE = QUESTION
CHANGES = [
    _CAMPAIGN | {"description": "campaigns, several by comma; by default all that the key may see"},
    _ADVERTISER,
    _parameter(
        "since",
        {"type": "string"},
        "the as_of of the answer before; or a time: RFC 3339, now, or back from now",
        "-1h",
        required=True,
    ),
    _parameter("granularity", {"type": "string", "enum": ["hour", "day"], "default": "hour"}, "of the buckets", "hour"),
    _ROWS,
    _CURSOR,
]

_DATE: dict[str, Any] = {"type": "string", "format": "date", "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}
_DAY = _parameter("date", _DATE, "a day of UTC", "2026-11-20") | {"in": "path", "required": True}
_SUBJECT = [
    _CAMPAIGN | {"description": "campaigns, several by comma; by default all that the key may see"},
    _ADVERTISER,
]
RUNS = [
    _parameter("from", _DATE, f"the first day; {USUAL_DAYS} days before the last one by default", "2026-11-01"),
    _parameter("to", _DATE, f"the last day, today by default; {MOST_DAYS} days at most", "2026-11-30"),
    *_SUBJECT,
]
CAUSES = [_DAY, *_SUBJECT]
LEDGER = [
    _DAY,
    *_SUBJECT,
    _parameter(
        "cause",
        _list({"type": "string", "enum": list(CAUSES_OF_LEDGER)}, len(CAUSES_OF_LEDGER)),
        "causes, by comma",
        ["late"],
        **_BY_COMMA,
    ),
    _ROWS,
    _CURSOR,
]

STATEMENTS = [
    _ADVERTISER | {"required": True, "description": "whose statement"},
    _parameter(
        "month",
        {"type": "string", "pattern": r"^[0-9]{4}-(0[1-9]|1[0-2])$"},
        "a month of days of UTC",
        "2026-11",
        required=True,
    ),
    _parameter(
        "issue", {"type": "integer", "minimum": 0, "maximum": MAX_INT}, "an earlier issue; the newest by default", None
    ),
    _parameter(
        "format", {"type": "string", "enum": list(STATEMENT_FORMATS), "default": "json"}, "of the answer", "csv"
    ),
]

ANOMALIES_OF = [
    _CAMPAIGN,
    _ADVERTISER,
    _parameter("granularity", {"type": "string", "enum": list(GRAINS_OF_ANOMALIES), "default": "hour"}, "of the numbers", "minute"),
    _parameter("since", _TIME, "only anomalies since then: by default seven days of hours, or six hours of minutes", "-24h"),
    _parameter("severity", {"type": "string", "enum": list(SEVERITIES), "default": SEVERITIES[0]}, "at least", "critical"),
]  # fmt: skip
BACKTEST_OF = [
    *(parameter for parameter in ANOMALIES_OF if parameter["name"] != "severity"),
    _parameter("severity", {"type": "string", "enum": list(SEVERITIES)}, "how severe a bucket must be; by default as set", "warning"),
    _parameter("cooldown_s", {"type": "integer", "minimum": 0, "maximum": 86_400}, "between two alerts of a campaign and kind; by default as set", 1_800),
    _parameter("alerts_a_day", {"type": "integer", "minimum": 1, "maximum": 10_000}, "of a campaign, at most; by default as set", 20),
]  # fmt: skip
TRENDING_OF = [
    _parameter("dimension", {"type": "string", "enum": list(TRENDING_DIMENSIONS), "default": "campaign"}, "what is listed", "ad"),
    _parameter("by", {"type": "string", "enum": list(VOLUMES), "default": USUAL_VOLUME}, "the events that count", "clicks"),
    _parameter("k", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": USUAL_GROUPS}, "groups at most", 50),
    _ADVERTISER | {"description": "whose; by default the only one that the key may see, or with an admin key all"},
]  # fmt: skip
BUDGETS_OF = [
    _ADVERTISER | {"required": True, "description": "whose campaigns"},
    _ROWS | {"description": "campaigns at most"},
]

LIVE_ALERTS = [
    _parameter("kind", document_alerts.KIND, "only of this kind", "spend-spike"),
    _parameter("severity", document_alerts.SEVERITY | {"default": SEVERITIES[0]}, "at least", "critical"),
    _parameter("state", document_alerts.STATE, "only in this state", "open"),
    _CAMPAIGN | {"description": "only about these campaigns, several by comma"},
    _ADVERTISER | {"description": "only about this advertiser; 0, with an admin key that sees all: the operator's"},
    _parameter("muted", {"type": "string", "enum": ["false", "true"], "default": "false"}, "true: also those that are muted", "true"),
]  # fmt: skip
ALERTS = [
    *LIVE_ALERTS,
    _parameter("since", _TIME, "only those that have opened since then, by event time", "-7d"),
    _parameter("limit", {"type": "integer", "minimum": 1, "maximum": MOST_LISTED, "default": USUALLY_LISTED}, "alerts at most", 50),
    _CURSOR,
]  # fmt: skip
MUTES = [_ADVERTISER | {"description": "only of this advertiser"}]
ALERT_SUMMARY = [_ADVERTISER | {"description": "only about this advertiser"}]

DEAD_LETTERS = [
    _parameter("reason", {"type": "string", "enum": list(map(str, Reason))}, "only letters with this reason", "bad-value"),
    _parameter("from", _TIME, "only letters since then", "-24h"),
    _parameter("limit", {"type": "integer", "minimum": 1, "maximum": 500, "default": 50}, "letters at most", 50),
    _CURSOR,
]  # fmt: skip

_NUMBER: dict[str, Any] = {"type": "integer", "minimum": 0}
_INSTANT = {"type": "string", "format": "date-time"}
_FINALITY = {"type": "string", "enum": list(FINALITY)}
_ROW = {
    "type": "object",
    "required": ["time", *MEASURES, *RATIOS, "finality", "settled_until"],
    "properties": {
        "time": _INSTANT,
        **{d: {"type": "string" if d in ("country", "device") else "integer"} for d in DIMENSIONS},
        **{
            name_column(d): {"type": "string", "description": "with names=true"}
            for d in DIMENSIONS
            if d in KIND_OF_DIMENSION
        },
        **dict.fromkeys(MEASURES, _NUMBER),
        **{r: {"type": ["integer" if r.endswith("micros") else "number", "null"]} for r in RATIOS},
        **{p: {"type": ["number" if is_share(p) else "integer", "null"]} for p in PREVIOUS},
        **{c: {"type": ["number", "null"]} for c in CHANGE_COLUMNS},
        "users": {"type": ["integer", "null"]},
        "frequency": {"type": ["number", "null"]},
        "finality": _FINALITY,
        "settled_until": _INSTANT,
    },
}
_ANSWER = {
    "type": "object",
    "required": ["meta", "answer_id", "data", "rows", "next_cursor", "granularity", "currency", "finality", "watermark", "statistics", "warnings"],
    "properties": {
        "meta": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}, "type": {"type": "string"}}}},
        "answer_id": {"type": "string", "description": "the same for the same question over the same data"},
        "data": {"type": "array", "items": _ROW},
        "totals": {"type": "object", "description": "with totals=true: the columns of a row but time and dimensions"},
        "comparison": {
            "type": "object",
            "description": "with compare: the part of the earlier range that is compared, where all of it would end, and up to when an"
            " unfinished range counts for it",
            "properties": {
                "kind": {"type": "string", "enum": list(COMPARISONS)},
                **dict.fromkeys(("start", "end", "whole_end"), _INSTANT),
                "counted_until": {"type": ["string", "null"], "format": "date-time"},
            },
        },
        "users_standard_error": {"type": "number", "description": "with users=true: relative; 95 of 100 are within twice as much"},
        "users_range": {
            "type": "object",
            "description": "with users=true: the whole hours that users were counted in, where they are more than the range",
            "properties": dict.fromkeys(("start", "end"), _INSTANT),
        },
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
_AMOUNTS: dict[str, Any] = {"type": "object", "properties": {m: {"type": "integer"} for m in BILLED}}
_CHANGED = {
    "type": "object",
    "required": ["data", "rows", "granularity", "next_cursor", "as_of"],
    "properties": {
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "time": _INSTANT,
                    "campaign_id": _NUMBER,
                    "from": _AMOUNTS,
                    "to": _AMOUNTS,
                    "cause": {"type": "string", "enum": ["late", "reconciled"]},
                    "causes": {"type": "object", "additionalProperties": _AMOUNTS},
                    "finality": _FINALITY,
                    "changed_at": _INSTANT,
                },
            },
        },
        "rows": _NUMBER,
        "granularity": {"type": "string"},
        "next_cursor": {"type": ["string", "null"]},
        "as_of": {"type": "string", "description": "the next since"},
    },
}
_OBJECT = {"type": "object"}
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
                    "cause": {"type": "string", "enum": list(CAUSES_OF_LEDGER)},
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
    401: ("unauthorized", "the request has no valid key; send the header Authorization: Bearer KEY", None),
    403: ("forbidden", "this key may not see advertiser 9", "advertiser_id"),
    404: ("not-found", "there is no /v2/metrics; /docs lists what there is", None),
    409: ("in-use", "advertiser 3 has 12 campaigns; delete these first", None),
    405: ("method-not-allowed", "TRACE is not allowed; use GET, HEAD, OPTIONS", None),
    406: (
        "not-acceptable",
        "Accept allows none of application/json, text/csv; retry with one of them, or with format=",
        None,
    ),
    413: ("too-large", "the request has a body of more than 65536 bytes", None),
    414: ("too-long", "the address has more than 32768 bytes; shorten it", None),
    415: ("unsupported-media-type", "the body must be JSON, with the header Content-Type: application/json", None),
    422: (
        "grain-not-held",
        "minutes before 2026-11-19T13:38:00Z are no longer retained; retry with granularity=hour or day",
        "granularity",
    ),
    429: ("too-many-requests", "the rate limit of this key is exceeded; retry in 3 s", None),
    503: (
        "unavailable",
        "none of the stores that this needs is available: Redis: Connection refused; retry in a few seconds",
        None,
    ),
}


def _responses(
    content: dict[str, Any], problem_statuses: tuple[int, ...], status: int = 200
) -> dict[int | str, dict[str, Any]]:
    refusals: dict[int | str, dict[str, Any]] = {}
    for refused in problem_statuses:
        kind, detail, parameter = _EXAMPLES[refused]
        example = problems.Problem(refused, kind, detail, parameter).body()
        refusal = {problems.MEDIA_TYPE: {"schema": problems.SCHEMA, "example": example}}
        refusals[refused] = {"description": problems.TITLES[refused], "content": refusal}
    return {status: {"description": "the answer", "content": content}} | refusals


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


_ENTRY_FIELDS: dict[str, dict[str, Any]] = {
    "id": _ID,
    "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_CHARACTERS, "pattern": r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*[^\s\x00-\x1f\x7f-\x9f\u2028\u2029][^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"},
    "advertiser_id": _ID | {"description": "one of the directory"},
    "campaign_id": _ID | {"description": "one of the directory"},
    "timezone": {"type": "string", "default": "UTC", "description": "IANA name"},
    "status": {"type": "string", "enum": list(STATUSES), "default": "active"},
    "start": {"type": ["string", "null"], "format": "date", "description": "first day"},
    "end": {"type": ["string", "null"], "format": "date", "description": "last day"},
    "budget": {"type": ["string", "null"], "enum": [*BUDGETS, None], "description": "what budget_micros is the limit of"},
    "budget_micros": _ID | {"type": ["integer", "null"], "description": "in millionths of the currency"},
}  # fmt: skip
_Q = {"type": "string", "maxLength": MAX_NAME_CHARACTERS}
_SEARCHED = {
    "advertiser_id": _ADVERTISER | {"description": "of an advertiser"},
    "campaign_id": _parameter("campaign_id", _ID, "of a campaign", 7),
    "status": _parameter("status", {"type": "string", "enum": list(STATUSES)}, "in this state", "active"),
}
SEARCHES = {
    kind: [_parameter("q", _Q, "part of a name, whatever its case, or an id", "summer"), *(_SEARCHED[f] for f in filters), _ROWS, _CURSOR]
    for kind, filters in FILTERS.items()
}  # fmt: skip
PATH_ID = _parameter("id", _ID, "its number", 7) | {"in": "path", "required": True}


def _entry(kind: str) -> dict[str, Any]:
    fields = fields_of(kind)
    return {"type": "object", "required": list(fields), "properties": {name: _ENTRY_FIELDS[name] for name in fields}}


def _listed(kind: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["data", "rows", "next_cursor", "warnings"],
        "properties": {
            "data": {"type": "array", "items": _entry(kind)},
            "rows": _NUMBER,
            "next_cursor": {"type": ["string", "null"]},
            "warnings": {"type": "array", "items": {"type": "string"}},
        },
    }


def _body(kind: str) -> dict[str, Any]:
    required = required_of(kind)[1:]
    properties = {name: _ENTRY_FIELDS[name] for name in fields_of(kind)[1:]}
    # Null stands for a field that is left out.
    properties |= {
        name: {"anyOf": [field, {"type": "null"}]} for name, field in properties.items() if name not in required
    }
    schema = {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


ENTRY_BODIES = {kind: _body(kind) for kind in KINDS}
_KEYED = (401, 403, 429, 503)
_BODIED = (400, 413, 414, 415, 422)
_ROWS_ALONE: dict[str, Any] = {m.partition(";")[0]: {"schema": {"type": "string"}} for m in MEDIA_TYPES.values()}
RESPONSES = {
    "metrics": _responses(_ROWS_ALONE | _json(_ANSWER), (400, 406, 413, 414, 422, *_KEYED))
    | {304: {"description": "the answer that If-None-Match names is still current"}},
    "top": _responses(_json(_ANSWER), (400, 406, 413, 414, 422, *_KEYED)),
    "changes": _responses(_json(_CHANGED), (400, 406, 413, 414, 422, *_KEYED)),
    "ledger": _responses(_json(_LEDGER), (400, 404, 406, 413, 414, *_KEYED)),
    "runs": _responses(_json(document_bills.RUNS), (400, *_KEYED)),
    "causes": _responses(_json(document_bills.CAUSES), (400, 404, *_KEYED)),
    "statement": _responses(
        _json(document_bills.STATEMENT) | {"text/csv": {"schema": {"type": "string"}}}, (400, 404, 422, *_KEYED)
    ),
    "anomalies": _responses(_json(document_bills.ANOMALIES), (400, 422, *_KEYED)),
    "backtest": _responses(_json(document_bills.BACKTEST), (400, 422, *_KEYED)),
    "trending": _responses(_json(document_bills.TRENDING), (400, 422, *_KEYED)),
    "budgets": _responses(_json(document_bills.BUDGETS), (400, *_KEYED)),
    "started": {202: {"description": "the run was asked for", "content": _json(document_bills.STARTED)}}
    | {k: v for k, v in _responses({}, (400, 409, 413, 415, *_KEYED)).items() if k != 200}
    | {501: {"description": "no supervisor started this router"}},
    "letters": _responses(_json(document_bills.LETTERS), (400, *_KEYED)),
    "replay": _responses(_json(document_bills.REPLAYED), (400, 404, 409, 413, 415, *_KEYED)),
    "pipeline": _responses(_json(document_bills.PIPELINE), _KEYED),
    "live": _responses({"text/event-stream": {"schema": {"type": "string"}}}, (400, 413, 414, 422, *_KEYED)),
    "alerts": _responses(_json(document_alerts.ALERTS), (400, 413, 414, *_KEYED)),
    "alert summary": _responses(_json(document_alerts.SUMMARY), (400, 413, 414, *_KEYED)),
    "alert": _responses(_json(document_alerts.ALERT_WITH_HISTORY), (400, 404, 413, 414, *_KEYED)),
    "acknowledged": _responses(_json(document_alerts.ALERT), (404, *_BODIED, *_KEYED)),
    "live alerts": _responses({"text/event-stream": {"schema": {"type": "string"}}}, (400, 413, 414, *_KEYED)),
    "mutes": _responses(_json(document_alerts.MUTES), (400, 413, 414, *_KEYED)),
    "mute": _responses(_json(document_alerts.MUTE), (*_BODIED, *_KEYED)),
    "ended mute": _responses(_json(document_alerts.MUTE), (400, 404, 413, 414, *_KEYED)),
    "access": _responses(_json(document_credentials.ACCESS), (400, *_KEYED)),
    "issued": _responses(_json(document_credentials.ISSUED), (*_BODIED, *_KEYED), 201),
    "keys": _responses(_json(document_credentials.KEYS), (400, *_KEYED)),
    "key": _responses(_json(document_credentials.KEY), (400, 404, 409, *_KEYED)),
    "new key": _responses(_json(document_credentials.KEY_WITH_SECRET), (*_BODIED, *_KEYED), 201),
    "rotated key": _responses(_json(document_credentials.KEY_WITH_SECRET), (404, 409, *_BODIED, *_KEYED)),
    "audit": _responses(_json(document_credentials.AUDIT), (400, *_KEYED)),
    "webhooks": _responses(_json(document_webhooks.WEBHOOKS), (400, *_KEYED)),
    "webhook": _responses(_json(document_webhooks.WEBHOOK), (404, *_BODIED, *_KEYED)),
    "new webhook": _responses(_json(document_webhooks.WEBHOOK_WITH_SECRET), (409, *_BODIED, *_KEYED), 201),
    "webhook secret": _responses(_json(document_webhooks.WEBHOOK_WITH_SECRET), (404, *_BODIED, *_KEYED)),
    "attempts": _responses(_json(document_webhooks.ATTEMPTS), (400, 404, *_KEYED)),
    "attempt": _responses(_json(document_webhooks.ATTEMPT), (404, 409, *_BODIED, *_KEYED), 202),
    "plain": _responses(_json(_OBJECT), _KEYED),
    "open": _responses(_json(_OBJECT), ()),
    "ready": _responses(_json(_OBJECT), ()) | {503: {"description": "what is not up", "content": _json(_OBJECT)}},
    **{f"{kind} list": _responses(_json(_listed(kind)), (400, 413, 414, *_KEYED)) for kind in KINDS},
    **{f"{kind} entry": _responses(_json(_entry(kind)), (400, 404, 413, 414, 415, *_KEYED)) for kind in KINDS},
    **{f"{kind} deleted": _responses(_json(_entry(kind)), (400, 404, 409, 413, 414, *_KEYED)) for kind in KINDS},
    "text": _responses({"text/plain": {"schema": {"type": "string"}}}, (401, 503)),
}
"""By route."""
SECURITY = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "a key of `adclick keys create`, or a token of POST /v1/tokens",
    }
}
