"""Why what is billed differs from what the stream had counted: rows of a nightly run's ledger, one for each cause."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from infra.clickhouse.client import ClickHouse
from infra.clickhouse.ledger_causes import Cause
from infra.clock import iso
from ingest.partials import BILLED
from query.bad_question import BadQuestion
from query.cursor import read_page
from query.parameters import collect_parameters, parse_campaigns, parse_date, parse_id, parse_limit
from query.row_scope import RowScope
from query.signing import Signer
from query.tiers.clickhouse import row_conditions

PARAMETERS = ("campaign_id", "advertiser_id", "cause", "limit", "cursor")
CAUSES = tuple(map(str, Cause))
_KIND = "ledger"
_KEYS = ("campaign_id", "time", "advertiser_id", "ad_id", "publisher_id", "country", "device")
_ORDER = (*_KEYS, "cause")
_TYPES = dict.fromkeys(_ORDER, "UInt64") | dict.fromkeys(("country", "device", "cause"), "String") | {"time": "UInt32"}


@dataclass(frozen=True)
class LedgerQuestion:
    """Which rows of a day's ledger."""

    date: dt.date
    campaigns: tuple[int, ...]
    advertiser: int | None
    scope: RowScope
    """The rows that may be seen."""
    causes: tuple[str, ...]
    limit: int
    run_id: str
    """The run of the first page, also once the day was reconciled again; empty on the first page."""
    after: tuple[Any, ...] | None
    """The last row of the page before, by _ORDER."""

    @property
    def digest(self) -> str:
        """A digest of all that the rows depend on, but the run."""
        parts = [self.date.isoformat(), self.campaigns, self.advertiser, self.scope.parts, self.causes]
        return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()[:24]


def parse_ledger_question(
    date_text: str, parameters: Sequence[tuple[str, str]], scope: RowScope, signer: Signer
) -> LedgerQuestion:
    """Raises BadQuestion."""
    date = parse_date("date", date_text)
    values, _ = collect_parameters(parameters, PARAMETERS)
    advertiser = parse_id("advertiser_id", values["advertiser_id"]) if "advertiser_id" in values else None
    causes = tuple(values["cause"].split(",")) if "cause" in values else ()
    for cause in causes:
        if cause not in CAUSES:
            raise BadQuestion("cause", f"no such cause: {cause[:40]!r}; use {', '.join(CAUSES)}")
    campaigns = parse_campaigns(values["campaign_id"]) if "campaign_id" in values else ()
    scope.refuse_foreign(advertiser, campaigns)
    question = LedgerQuestion(date, campaigns, advertiser, scope, causes, parse_limit(values), "", None)
    if "cursor" not in values:
        return question
    payload = read_page(values["cursor"], _KIND, signer, question.digest)
    return replace(question, run_id=payload["run"], after=tuple(payload["k"]))


class LedgerReader:
    """Reads from ClickHouse. Every method may raise Unavailable."""

    def __init__(self, client: ClickHouse) -> None:
        self._client = client

    def answer(self, question: LedgerQuestion, signer: Signer) -> dict[str, Any] | None:
        """The rows of the day's current run, as they go over HTTP; None when the day has not been reconciled.

        `share` is what the row's cause changes; `exact` − `stream` is what all causes of its hour and dimensions change.
        """
        db = self._client.database
        run_id = question.run_id or self._current_run(question.date)
        if run_id is None:
            return None
        conditions, parameters = row_conditions(question.campaigns, question.advertiser, question.scope)
        visible = " AND ".join(["run_id = {run:String}", *conditions])
        parameters |= {"run": run_id, "limit": question.limit + 1}
        filters = ["1"]
        if question.causes:
            filters.append("cause IN {causes:Array(String)}")
            parameters["causes"] = list(question.causes)
        if question.after is not None:
            bounds = ", ".join(f"{{after_{name}:{_TYPES[name]}}}" for name in _ORDER)
            filters.append(f"({', '.join(_SORTED)}) > ({bounds})")
            parameters |= {f"after_{name}": value for name, value in zip(_ORDER, question.after, strict=True)}
        keys, amounts = ", ".join(_KEYS), ", ".join(BILLED)
        deltas = ", ".join(
            f"sum(l.{m}) OVER (PARTITION BY {', '.join(f'l.{k}' for k in _KEYS)}) AS delta_{m}" for m in BILLED
        )
        exact = ", ".join(f"toInt64(e.{m}) AS exact_{m}" for m in BILLED)
        rows = self._client.rows(
            f"""SELECT {", ".join(_SORTED)}, {amounts}, {", ".join(f"delta_{m}" for m in BILLED)}, {", ".join(f"exact_{m}" for m in BILLED)}
                FROM (
                    SELECT {", ".join(f"l.{k} AS {k}" for k in _KEYS)}, l.cause AS cause,
                        {", ".join(f"l.{m} AS {m}" for m in BILLED)}, {deltas}, {exact}
                    FROM (SELECT * FROM {db}.ledger FINAL WHERE {visible}) AS l
                    LEFT JOIN (SELECT {keys}, {amounts} FROM {db}.exact_hours FINAL WHERE {visible}) AS e USING ({keys}))
                WHERE {" AND ".join(filters)} ORDER BY {", ".join(_SORTED)} LIMIT {{limit:UInt32}}""",
            parameters,
        )
        page, more = rows[: question.limit], len(rows) > question.limit
        return {
            "date": question.date.isoformat(),
            "run_id": run_id,
            "data": [_row(row) for row in page],
            "rows": len(page),
            "next_cursor": signer.sign(
                {"of": _KIND, "q": question.digest, "run": run_id, "k": list(page[-1][: len(_ORDER)])}
            )
            if more
            else None,
        }

    def _current_run(self, date: dt.date) -> str | None:
        query = f"SELECT run_id FROM {self._client.database}.current_runs WHERE date = {{date:Date}}"
        rows = self._client.rows(query, {"date": date})
        return str(rows[0][0]) if rows else None


# The columns of _ORDER as they are sorted, compared and put into cursors: times as numbers.
_SORTED = tuple(
    "toUnixTimestamp(time)" if name == "time" else f"toString({name})" if _TYPES[name] == "String" else name
    for name in _ORDER
)


def _row(values: tuple[Any, ...]) -> dict[str, Any]:
    key = dict(zip(_ORDER, values, strict=False))
    groups = [values[len(_ORDER) + n * len(BILLED) :][: len(BILLED)] for n in range(3)]
    share, delta, exact = (dict(zip(BILLED, map(int, group), strict=True)) for group in groups)
    return key | {
        "time": iso(key["time"] * 1000),
        "share": share,
        "exact": exact,
        "stream": {m: exact[m] - delta[m] for m in BILLED},
    }
