"""The OpenAPI document of bills and of the pipeline: answers."""

from __future__ import annotations

from typing import Any

from ingest.events import FIELDS
from ingest.partials import BILLED
from query.anomalies import KINDS, SEVERITIES
from query.budgets import STATES
from query.directory.entries import BUDGETS as KINDS_OF_BUDGET
from query.finality import FINALITY
from query.ledger import CAUSES as CAUSES_OF_LEDGER

_NUMBER: dict[str, Any] = {"type": "integer", "minimum": 0}
_DATE: dict[str, Any] = {"type": "string", "format": "date"}
_INSTANT = {"type": "string", "format": "date-time"}
_FINALITY = {"type": "string", "enum": list(FINALITY)}
_AMOUNTS: dict[str, Any] = {"type": "object", "properties": {m: {"type": "integer"} for m in BILLED}}
_RUN_ID = {"type": "string", "description": "the run; another run of the day has another one"}
_BILL: dict[str, dict[str, Any]] = {
    "shown": _AMOUNTS | {"description": "what the stream had counted when the run was compared with it"},
    "billed": _AMOUNTS,
    "drift": {"type": "number", "description": "the largest difference of a measure, as a share of what is billed"},
}
_OPEN_FROM = {
    "type": ["string", "null"],
    "format": "date-time",
    "description": "the run holds for hours before this; null: for the whole day",
}
RUNS = {
    "type": "object",
    "required": ["data", "rows"],
    "properties": {
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["date", "run_id", "published_at", "current", "open_from", *_BILL],
                "properties": {
                    "date": _DATE,
                    "run_id": _RUN_ID,
                    "published_at": _INSTANT,
                    "current": {"type": "boolean", "description": "false once a later run has taken its place"},
                    "open_from": _OPEN_FROM,
                    **{name: {**schema, "type": [schema["type"], "null"]} for name, schema in _BILL.items()},
                },
            },
        },
        "rows": _NUMBER,
        "running": {"type": "array", "items": {"type": "object"}, "description": "the run at work; for admin keys"},
        "last_started": {
            "type": "object",
            "description": "how the run ended that the supervisor started last; for admin keys",
        },
    },
}
CAUSES = {
    "type": "object",
    "required": ["date", "run_id", "digest", "published_at", "open_from", *_BILL, "counted_late", "causes"],
    "properties": {
        "date": _DATE,
        "run_id": _RUN_ID,
        "digest": {"type": "string", "description": "SHA-256 of all rows that the run has published"},
        "published_at": _INSTANT,
        "open_from": _OPEN_FROM,
        **_BILL,
        "counted_late": {
            "type": "object",
            "properties": {"events": _NUMBER, "clicks": _NUMBER},
            "description": "of what is billed, what came late by an hour at most, and was counted at once",
        },
        "causes": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"cause": {"type": "string", "enum": list(CAUSES_OF_LEDGER)}, **_AMOUNTS["properties"]},
            },
        },
        "file_count": _NUMBER | {"description": "files of the archive that the run has read; for admin keys"},
        "files": {
            "type": "array",
            "items": {"type": "object"},
            "description": "the first 1,000 of them; for admin keys",
        },
    },
}
_RATE = {"type": ["number", "null"]}
_COUNT: dict[str, Any] = {"type": ["integer", "null"], "minimum": 0}
_LAGS = {"type": "array", "items": {"type": "object", "properties": {"partition": _NUMBER}}}
PIPELINE = {
    "type": "object",
    "required": ["watermark", "stream_lag_s", "level"],
    "properties": {
        "watermark": {"type": ["string", "null"]},
        "stream_lag_s": {"type": ["number", "null"]},
        "level": {"type": "string", "description": "overload level"},
        "rates": {
            "type": "object",
            "description": "events in a second, by the last 10 s; null before the router has looked twice; events and archive with canaries",
            "properties": dict.fromkeys(
                ("events", "ingest", "first", "copies", "doubt", "too_late", "rejected", "stream", "archive"), _RATE
            ),
        },
        "lag": {
            "type": "object",
            "description": "by partition: messages to read, or seconds behind what ingest has sent",
            "properties": dict.fromkeys(("ingest", "stream", "archive"), _LAGS),
        },
        "dedup": {
            "type": "object",
            "description": "ids of valid events since the ingest workers started",
            "properties": dict.fromkeys(("first", "copies", "doubt", "bloom_positives", "bloom_false"), _COUNT),
        },
        "processes": {"type": "array", "items": {"type": "object"}},
        "canaries": {
            "type": "array",
            "description": "for each tier: how long ago the newest canary was sent that has got there, over all partitions and of the slowest; empty while canaries are off",
            "items": {
                "type": "object",
                "properties": {
                    "tier": {"type": "string", "enum": ["ingest", "archive", "hot", "warm", "cold"]},
                    "age_s": {"type": "number"},
                    "slowest_s": {"type": "number"},
                    "slowest": {"type": ["string", "null"], "description": "a partition of a topic, or a shard"},
                },
            },
        },
    },
}

_BILLED = dict.fromkeys(BILLED, _NUMBER)
_ISSUED = {"issue": _NUMBER, "digest": {"type": "string"}, "issued_at": _INSTANT}
STATEMENT = {
    "type": "object",
    "required": [
        "advertiser_id", "name", "month", "timezone", "currency", "status", "issue", "digest", "issued_at", "days", "campaigns",
        "total", "previous_issue", "differences", "waiting_for", "warnings",
    ],
    "properties": {
        "advertiser_id": _NUMBER,
        "name": {"type": "string"},
        "month": {"type": "string"},
        "timezone": {"type": "string", "description": "of the days: UTC"},
        "currency": {"type": "string"},
        "status": {"type": "string", "enum": ["open", "final"]},
        "issue": {"type": ["integer", "null"]},
        "digest": {"type": "string", "description": "SHA-256 of the statement as CSV"},
        "answer_id": {"type": ["string", "null"], "description": "of /v1/metrics about the month's total; null where its numbers are others"},
        "issued_at": {"type": ["string", "null"], "format": "date-time"},
        "days": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"date": _DATE, **_BILLED, "finality": _FINALITY, "run_id": {"type": ["string", "null"]}},
            },
        },
        "campaigns": {
            "type": "array",
            "items": {"type": "object", "properties": {"id": _NUMBER, "name": {"type": "string"}, **_BILLED}},
        },
        "total": {"type": "object", "properties": _BILLED},
        "previous_issue": {"type": ["object", "null"], "properties": _ISSUED},
        "differences": {"type": "array", "items": {"type": "object"}, "description": "from the issue before, by day and by campaign"},
        "waiting_for": {"type": "array", "items": _DATE, "description": "days that are not reconciled"},
        "warnings": {"type": "array", "items": {"type": "string"}},
    },
}  # fmt: skip

_TEXT = {"type": ["string", "null"]}
ANOMALIES = {
    "type": "object",
    "required": ["data", "rows", "granularity", "watermark", "warnings"],
    "properties": {
        "data": {
            "type": "array",
            "description": "the newest first",
            "items": {
                "type": "object",
                "properties": {
                    "campaign_id": _NUMBER,
                    "name": {"type": "string"},
                    "kind": {"type": "string", "enum": list(KINDS)},
                    "text": {"type": "string", "description": "the kind in words"},
                    "severity": {"type": "string", "enum": list(SEVERITIES)},
                    "start": _INSTANT,
                    "end": _INSTANT | {"description": "of its last bucket so far"},
                    "open": {"type": "boolean", "description": "whether it reaches to the last closed bucket"},
                    "measure": {"type": "string"},
                    "value": {"type": "number", "description": "in its worst bucket"},
                    "expected": {"type": "number", "description": "what was to be expected there"},
                    "deviations": {"type": "number", "description": "how far it is away, in standard deviations"},
                },
            },
        },
        "rows": _NUMBER,
        "granularity": {"type": "string"},
        "watermark": {"type": ["string", "null"], "format": "date-time"},
        "warnings": {"type": "array", "items": {"type": "string"}},
    },
}
BACKTEST = {
    "type": "object",
    "required": ["policy", "alerts", "campaigns", "a_campaign_and_month", "by_kind", "data"],
    "properties": {
        "policy": {"type": "object"},
        "alerts": _NUMBER,
        "campaigns": _NUMBER,
        "a_campaign_and_month": {"type": ["number", "null"], "description": "alerts of a campaign in thirty days"},
        "by_kind": {"type": "object", "additionalProperties": _NUMBER},
        "data": {"type": "array", "description": "the newest first", "items": {"type": "object"}},
        "warnings": {"type": "array", "items": {"type": "string"}},
    },
}
TRENDING = {
    "type": "object",
    "required": ["data", "rows", "by", "start", "end", "computed_at", "warnings"],
    "properties": {
        "data": {
            "type": "array",
            "description": "the highest score first",
            "items": {
                "type": "object",
                "properties": {
                    "campaign_id": _NUMBER,
                    "ad_id": _NUMBER,
                    "publisher_id": _NUMBER,
                    "name": {"type": "string"},
                    "score": {"type": "number", "description": "growth × users × sources × recency"},
                    "volume": _NUMBER | {"description": "events of the last hour"},
                    "usual": {"type": "number", "description": "events of an hour, by the seven days before"},
                    "growth": {"type": "number", "description": "volume ÷ usual"},
                    "users": {
                        "type": ["number", "null"],
                        "description": "distinct users by event, at most 1; null: not known of any campaign, and left out",
                    },
                    "users_known": {
                        "type": "boolean",
                        "description": "false: users are not known; `users` is the lowest of the other campaigns",
                    },
                    "sources": {
                        "type": "number",
                        "description": "probability that two events have different sources",
                    },
                    "recency": {"type": "number", "description": "1 for a steady hour, more for one that grows"},
                },
            },
        },
        "rows": _NUMBER,
        "by": {"type": "string"},
        "computed_at": _INSTANT,
        "start": _INSTANT,
        "end": _INSTANT,
        "warnings": {"type": "array", "items": {"type": "string"}},
    },
}
BUDGETS = {
    "type": "object",
    "required": ["data", "rows", "finality", "watermark", "warnings"],
    "properties": {
        "data": {
            "type": "array",
            "description": "the most spent first",
            "items": {
                "type": "object",
                "properties": {
                    "campaign_id": _NUMBER,
                    **{name: {"type": "string"} for name in ("name", "status", "timezone")},
                    "budget": {"type": "string", "enum": list(KINDS_OF_BUDGET)},
                    **dict.fromkeys(("budget_micros", "spent_micros", "last_hour_micros"), _NUMBER),
                    "start": _INSTANT | {"description": "of what the budget is for: a local day, or all days"},
                    "end": {"type": ["string", "null"], "format": "date-time"},
                    "share": _RATE | {"description": "spent of the budget; null for a budget of 0"},
                    "pace": _RATE | {"description": "1: spent evenly; 2: twice as fast; null without an end"},
                    "exhausted_at": {
                        "type": ["string", "null"],
                        "format": "date-time",
                        "description": "if every hour is like the last one; null where that is not before the end",
                    },
                    "state": {"type": "string", "enum": list(STATES)},
                },
            },
        },
        "rows": _NUMBER,
        "finality": _FINALITY,
        "watermark": {"type": ["string", "null"], "format": "date-time"},
        "warnings": {"type": "array", "items": {"type": "string"}},
    },
}
LETTERS = {
    "type": "object",
    "required": ["data", "rows", "next_cursor"],
    "properties": {
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "description": "its place in ad-events-dead"},
                    "source": _TEXT | {"description": "topic/partition/offset of the event"},
                    **dict.fromkeys(("reason", "detail", "stage"), _TEXT),
                    "time": {"type": ["string", "null"], "format": "date-time"},
                    "value": _TEXT | {"description": "its first 4 KiB"},
                    "bytes": {"type": ["integer", "null"]},
                    "truncated": {"type": "boolean"},
                    "sent_again": {"type": "boolean"},
                    "sent_at": {"type": ["string", "null"], "format": "date-time"},
                },
            },
        },
        "rows": _NUMBER,
        "next_cursor": _TEXT,
        "counts": {
            "type": "array",
            "description": "by hour and reason, of the last 7 days; on the first page",
            "items": {
                "type": "object",
                "properties": {"time": _INSTANT, "reason": {"type": "string"}, "count": _NUMBER},
            },
        },
        "counts_complete": {"type": "boolean", "description": "false while the router still counts"},
    },
}
_LETTER_NAME = {"type": "string", "pattern": "^[0-9]{1,5}/[0-9]{1,18}$"}
_REPLAY_REQUEST = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "names": {"type": "array", "items": _LETTER_NAME, "maxItems": 100},
        "edit": {
            "type": "object",
            "description": "fields to set where they were at fault",
            "additionalProperties": False,
            "properties": {field: {"type": ["string", "integer", "null"]} for field in FIELDS},
        },
        "name": {**_LETTER_NAME, "type": ["string", "null"], "description": "the letter that value is sent instead of"},
        "value": {"type": ["string", "null"], "description": "the event, as JSON text"},
        "again": {"type": "boolean", "description": "also what was sent before"},
    },
}
REPLAY_REQUEST = {"required": True, "content": {"application/json": {"schema": _REPLAY_REQUEST}}}
REPLAYED = {
    "type": "object",
    "required": ["sent", "refused"],
    "properties": {
        "sent": _NUMBER,
        "refused": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "source": _TEXT, "reason": {"type": "string"}},
            },
        },
    },
}

RUN_REQUEST = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["date"],
                "additionalProperties": False,
                "properties": {"date": _DATE | {"description": "a day of UTC"}},
            }
        }
    },
}
STARTED = {"type": "object", "properties": {"date": _DATE, "state": {"type": "string", "enum": ["requested"]}}}
