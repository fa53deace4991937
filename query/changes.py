"""Closed buckets that were corrected or reconciled since a moment, so that a client that stored numbers can mend them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, iso
from query.bad_question import BadQuestion
from query.request import (
    FOREIGN_CURSOR,
    TEXT_CHARACTERS,
    campaigns_of,
    limit_of,
    number_of,
    parameters_of,
    refuse_foreign,
    time_of,
)
from query.signing import Signer
from query.tiers.stored import whose

PARAMETERS = ("campaign_id", "advertiser_id", "since", "granularity", "limit", "cursor")
TABLES = {"hour": "stream_hours", "day": "stream_days"}
# What happened just now may not be visible yet, on every replica and by every clock: the next `since` overlaps by this.
_OVERLAP_MS = 10_000
_LONGEST_MS = 31 * DAY_MS
_KIND = "changes"


@dataclass(frozen=True)
class Since:
    """What is asked."""

    campaigns: tuple[int, ...]
    advertiser: int | None
    scope: frozenset[int] | None
    since_ms: int
    grain: str
    limit: int
    since_text: str
    """`since` as the client wrote it."""
    as_of_ms: int
    """The `since` of the question that follows the last page: of the first page, since what changed while later ones were read may
    sort before them."""
    after: tuple[int, int, int] | None
    """(changed at, bucket, campaign) of the last row of the page before."""

    @property
    def digest(self) -> str:
        """All that the rows depend on."""
        scope = None if self.scope is None else sorted(self.scope)
        parts = [self.campaigns, self.advertiser, scope, self.since_ms, self.grain]
        return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()[:24]

    def cursor(self, last: Sequence[int], signer: Signer) -> str:
        """Of what comes behind a row: it keeps the moment that `-1d` was on the first page."""
        range_ = [self.since_ms, self.as_of_ms]
        return signer.sign({"of": _KIND, "q": self.digest, "k": list(last), "r": range_, "t": self.since_text})


def parse(given: Sequence[tuple[str, str]], now_ms: int, scope: frozenset[int] | None, signer: Signer) -> Since:
    """Raises BadQuestion."""
    one, _ = parameters_of(given, PARAMETERS)
    if "campaign_id" in one and "advertiser_id" in one:
        raise BadQuestion("campaign_id", "give campaign_id, advertiser_id, or neither: all that the key may see")
    advertiser = number_of("advertiser_id", one["advertiser_id"]) if "advertiser_id" in one else None
    refuse_foreign(advertiser, scope)
    grain = one.get("granularity", "hour")
    if grain not in TABLES:
        raise BadQuestion("granularity", f"granularity is hour or day, not {grain[:40]!r}")
    since_text = one.get("since", "")[:TEXT_CHARACTERS]
    resumed = _read_cursor(one["cursor"], since_text, signer) if "cursor" in one else None
    since_ms = resumed["r"][0] if resumed else time_of("since", one, now_ms)
    if since_ms < now_ms - _LONGEST_MS:
        raise BadQuestion("since", "changes are told for 31 days: read the numbers again", 422, "not-held")
    since = Since(
        campaigns_of(one["campaign_id"]) if "campaign_id" in one else (), advertiser, scope, since_ms, grain, limit_of(one),
        since_text, resumed["r"][1] if resumed else (now_ms - _OVERLAP_MS) // 1000 * 1000, tuple(resumed["k"]) if resumed else None,
    )  # fmt: skip
    if resumed and resumed["q"] != since.digest:
        raise BadQuestion("cursor", FOREIGN_CURSOR)
    return since


def _read_cursor(text: str, since_text: str, signer: Signer) -> dict[str, Any]:
    payload = signer.read(text)
    if payload is None or payload.get("of") != _KIND or payload.get("t") != since_text:
        raise BadQuestion("cursor", FOREIGN_CURSOR)
    return payload


class Changes:
    """Asks ClickHouse. Every method may raise Unavailable."""

    def __init__(self, client: ClickHouse) -> None:
        self._client = client

    def answer(self, asked: Since, signer: Signer) -> dict[str, Any]:
        """Rows in the order of their change, as they go over HTTP; `as_of` is the `since` of the next question."""
        db = self._client.database
        conditions, parameters = whose(asked.campaigns, asked.advertiser, asked.scope)
        of = " AND ".join(["1", *conditions])
        parameters |= {"since": asked.since_ms // 1000, "limit": asked.limit + 1}
        after = ""
        if asked.after is not None:
            after = "WHERE (changed, bucket, campaign_id) > ({a:UInt64}, {b:UInt64}, {c:UInt64})"
            parameters |= dict(zip("abc", asked.after, strict=True))
        bucket = "time" if asked.grain == "hour" else "toStartOfDay(time)"
        # A day that is reconciled takes the place of what was corrected before; of its buckets, those whose numbers moved.
        found = self._client.rows(
            f"""SELECT * FROM (
                    SELECT toUInt64(toUnixTimestamp(max(changed_at))) AS changed, toUInt64(toUnixTimestamp(time)) AS bucket,
                        campaign_id, 'corrected' AS finality
                    FROM {db}.{TABLES[asked.grain]}
                    WHERE changed_at >= toDateTime({{since:UInt32}}, 'UTC') AND {of}
                        AND toDate(time) NOT IN (SELECT date FROM {db}.current_runs WHERE open_from_ms = 0)
                    GROUP BY time, campaign_id
                    UNION ALL
                    SELECT toUInt64(toUnixTimestamp(max(at))), toUInt64(toUnixTimestamp({bucket})) AS bucket, campaign_id, 'reconciled'
                    FROM {db}.ledger AS ledger INNER JOIN {db}.current_runs AS current ON ledger.run_id = current.run_id
                    WHERE at >= toDateTime({{since:UInt32}}, 'UTC') AND {of}
                        AND (open_from_ms = 0 OR toUnixTimestamp(time) < intDiv(open_from_ms, 1000))
                    GROUP BY bucket, campaign_id
                ) {after} ORDER BY changed, bucket, campaign_id LIMIT {{limit:UInt32}}""",
            parameters,
        )
        shown = found[: asked.limit]
        more = len(found) > asked.limit
        return {
            "data": [
                {"time": iso(b * 1000), "campaign_id": c, "finality": f, "changed_at": iso(at * 1000)}
                for at, b, c, f in shown
            ],
            "rows": len(shown),
            "granularity": asked.grain,
            "next_cursor": asked.cursor(shown[-1][:3], signer) if more else None,
            "as_of": iso(asked.as_of_ms),
        }
