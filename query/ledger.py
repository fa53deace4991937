"""Why what is billed differs from what the stream had counted: rows of a nightly run's ledger, one for each cause."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from infra.clickhouse.client import ClickHouse
from infra.clock import iso
from query.bad_question import BadQuestion
from query.request import FOREIGN_CURSOR, campaigns_of, limit_of, number_of, parameters_of, refuse_foreign
from query.signing import Signer
from query.tiers.stored import whose

PARAMETERS = ("campaign_id", "advertiser_id", "cause", "limit", "cursor")
CAUSES = (
    "late", "shed", "doubt", "cross-partition-duplicate", "expired-horizon-duplicate", "conflicting-copy",
    "dead-letter-replayed", "open", "unexplained",
)  # fmt: skip
_KIND = "ledger"
_KEYS = ("campaign_id", "time", "advertiser_id", "ad_id", "publisher_id", "country", "device")
_ORDER = (*_KEYS, "cause")
_AMOUNTS = ("impressions", "clicks", "conversions", "spend_micros")
_TYPES = dict.fromkeys(_ORDER, "UInt64") | dict.fromkeys(("country", "device", "cause"), "String") | {"time": "UInt32"}


@dataclass(frozen=True)
class Asked:
    """What is asked."""

    date: dt.date
    campaigns: tuple[int, ...]
    advertiser: int | None
    scope: frozenset[int] | None
    causes: tuple[str, ...]
    limit: int
    run_id: str
    """The run that the first page was of, also once the day was reconciled again; empty on the first page."""
    after: tuple[Any, ...] | None
    """The last row of the page before, by _ORDER."""

    @property
    def digest(self) -> str:
        """All that the rows depend on, but the run."""
        scope = None if self.scope is None else sorted(self.scope)
        parts = [self.date.isoformat(), self.campaigns, self.advertiser, scope, self.causes]
        return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()[:24]


def parse(date: str, given: Sequence[tuple[str, str]], scope: frozenset[int] | None, signer: Signer) -> Asked:
    """Raises BadQuestion."""
    try:
        day = dt.date.fromisoformat(date)
    except ValueError:
        raise BadQuestion("date", f"not a date: {date[:40]!r}; like 2026-11-20") from None
    one, _ = parameters_of(given, PARAMETERS)
    advertiser = number_of("advertiser_id", one["advertiser_id"]) if "advertiser_id" in one else None
    refuse_foreign(advertiser, scope)
    causes = tuple(one["cause"].split(",")) if "cause" in one else ()
    for cause in causes:
        if cause not in CAUSES:
            raise BadQuestion("cause", f"no such cause: {cause[:40]!r}; there are {', '.join(CAUSES)}")
    campaigns = campaigns_of(one["campaign_id"]) if "campaign_id" in one else ()
    asked = Asked(day, campaigns, advertiser, scope, causes, limit_of(one), "", None)
    if "cursor" not in one:
        return asked
    payload = signer.read(one["cursor"])
    if payload is None or payload.get("of") != _KIND or payload["q"] != asked.digest:
        raise BadQuestion("cursor", FOREIGN_CURSOR)
    return replace(asked, run_id=payload["run"], after=tuple(payload["k"]))


class Ledger:
    """Asks ClickHouse. Every method may raise Unavailable."""

    def __init__(self, client: ClickHouse) -> None:
        self._client = client

    def answer(self, asked: Asked, signer: Signer) -> dict[str, Any] | None:
        """The rows of the day's current run, as they go over HTTP; None when the day has not been reconciled.

        `share` is what the row's cause moves; `exact` − `stream` is what all causes of its hour and dimensions move.
        """
        db = self._client.database
        run_id = asked.run_id or self._current_run(asked.date)
        if run_id is None:
            return None
        conditions, parameters = whose(asked.campaigns, asked.advertiser, asked.scope)
        of = " AND ".join(["run_id = {run:String}", *conditions])
        parameters |= {"run": run_id, "limit": asked.limit + 1}
        shown = ["1"]
        if asked.causes:
            shown.append("cause IN {causes:Array(String)}")
            parameters["causes"] = list(asked.causes)
        if asked.after is not None:
            bounds = ", ".join(f"{{after_{name}:{_TYPES[name]}}}" for name in _ORDER)
            shown.append(f"({', '.join(_SORTED)}) > ({bounds})")
            parameters |= {f"after_{name}": value for name, value in zip(_ORDER, asked.after, strict=True)}
        keys, amounts = ", ".join(_KEYS), ", ".join(_AMOUNTS)
        deltas = ", ".join(
            f"sum(l.{m}) OVER (PARTITION BY {', '.join(f'l.{k}' for k in _KEYS)}) AS delta_{m}" for m in _AMOUNTS
        )
        exact = ", ".join(f"toInt64(e.{m}) AS exact_{m}" for m in _AMOUNTS)
        found = self._client.rows(
            f"""SELECT {", ".join(_SORTED)}, {amounts}, {", ".join(f"delta_{m}" for m in _AMOUNTS)}, {", ".join(f"exact_{m}" for m in _AMOUNTS)}
                FROM (
                    SELECT {", ".join(f"l.{k} AS {k}" for k in _KEYS)}, l.cause AS cause,
                        {", ".join(f"l.{m} AS {m}" for m in _AMOUNTS)}, {deltas}, {exact}
                    FROM (SELECT * FROM {db}.ledger FINAL WHERE {of}) AS l
                    LEFT JOIN (SELECT {keys}, {amounts} FROM {db}.exact_hours FINAL WHERE {of}) AS e USING ({keys}))
                WHERE {" AND ".join(shown)} ORDER BY {", ".join(_SORTED)} LIMIT {{limit:UInt32}}""",
            parameters,
        )
        page = found[: asked.limit]
        more = len(found) > asked.limit
        return {
            "date": asked.date.isoformat(),
            "run_id": run_id,
            "data": [_row(row) for row in page],
            "rows": len(page),
            "next_cursor": signer.sign(
                {"of": _KIND, "q": asked.digest, "run": run_id, "k": list(page[-1][: len(_ORDER)])}
            )
            if more
            else None,
        }

    def _current_run(self, date: dt.date) -> str | None:
        query = f"SELECT run_id FROM {self._client.database}.current_runs WHERE date = {{date:Date}}"
        rows = self._client.rows(query, {"date": date})
        return str(rows[0][0]) if rows else None


# As they are ordered, compared and signed: times as numbers.
_SORTED = tuple(
    "toUnixTimestamp(time)" if name == "time" else f"toString({name})" if _TYPES[name] == "String" else name
    for name in _ORDER
)


def _row(found: tuple[Any, ...]) -> dict[str, Any]:
    key = dict(zip(_ORDER, found, strict=False))
    groups = [found[len(_ORDER) + n * len(_AMOUNTS) :][: len(_AMOUNTS)] for n in range(3)]
    share, delta, exact = (dict(zip(_AMOUNTS, map(int, group), strict=True)) for group in groups)
    return key | {
        "time": iso(key["time"] * 1000),
        "share": share,
        "exact": exact,
        "stream": {m: exact[m] - delta[m] for m in _AMOUNTS},
    }
