"""How many alerts of campaigns were false, over the last 28 whole days of UTC, by kind and by month of a campaign.

    false alarms = alerts that were withdrawn, and others that were muted at any moment of their episode
    rate         = false alarms ÷ campaign-months;  a campaign-month is 28 days on which a campaign had events

A mute says that its reader had no use for the alert. An acknowledgement says that it was read, and is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.clickhouse.alerts import NOBODY, TABLE
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, iso
from query.alerts.mutes import LONGEST_MS
from query.alerts.scope import AlertScope
from stream.insights.rules import KINDS

DAYS = 28


@dataclass(frozen=True)
class AlertCounts:
    """Alerts of a kind. `muted`: of those that were not withdrawn."""

    kind: str
    alerts: int
    withdrawn: int
    muted: int

    @property
    def false_alarms(self) -> int:
        """Those that there had better not been."""
        return self.withdrawn + self.muted


@dataclass(frozen=True)
class AlertSummary:
    """Of the alerts that opened within a range of whole days. `campaign_days`: on how many days campaigns had events, added up."""

    start_ms: int
    end_ms: int
    campaign_days: int
    kinds: tuple[AlertCounts, ...]

    def rate(self, counts: AlertCounts) -> float | None:
        """False alarms of a campaign and month; None where no campaign had events."""
        return counts.false_alarms * DAYS / self.campaign_days if self.campaign_days else None

    @property
    def total(self) -> AlertCounts:
        """Of all kinds."""
        return AlertCounts(
            "all", sum(c.alerts for c in self.kinds), sum(c.withdrawn for c in self.kinds), sum(c.muted for c in self.kinds)
        )  # fmt: skip

    def document(self) -> dict[str, Any]:
        """As it goes over HTTP."""
        return {
            "data": [self._describe(counts) for counts in self.kinds],
            "rows": len(self.kinds),
            "total": self._describe(self.total),
            "start": iso(self.start_ms),
            "end": iso(self.end_ms),
            "campaign_months": round(self.campaign_days / DAYS, 3),
        }

    def _describe(self, counts: AlertCounts) -> dict[str, Any]:
        rate = self.rate(counts)
        return {
            "kind": counts.kind, "alerts": counts.alerts, "withdrawn": counts.withdrawn, "muted": counts.muted,
            "false_alarms": counts.false_alarms, "false_alarms_per_campaign_month": None if rate is None else round(rate, 4),
        }  # fmt: skip


def read_summary(client: ClickHouse, scope: AlertScope, advertiser: int | None, now_ms: int) -> AlertSummary:
    """The alerts about campaigns that a key may see, of all advertisers or of one. Raises Unavailable."""
    end_ms = now_ms // DAY_MS * DAY_MS
    start_ms = end_ms - DAYS * DAY_MS
    conditions, parameters = scope.conditions()
    if advertiser is not None:
        conditions.append("advertiser_id = {advertiser:UInt64}")
        parameters["advertiser"] = advertiser
    parameters |= {"start": start_ms, "end": end_ms, "now": now_ms}
    counts = {kind: AlertCounts(kind, *numbers) for kind, *numbers in _count_alerts(client, conditions, parameters)}
    return AlertSummary(
        start_ms, end_ms, _count_campaign_days(client, conditions, parameters),
        tuple(counts.get(kind, AlertCounts(kind, 0, 0, 0)) for kind in KINDS),
    )  # fmt: skip


def _count_alerts(client: ClickHouse, conditions: Sequence[str], parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
    """(kind, alerts, withdrawn ones, others that were muted). Mutes are taken from the audit log: their table has the last of each subject
    alone. A mute lasts until its moment, or until its subject is muted anew or unmuted."""
    db = client.database
    within = [
        *conditions, "kind IN {kinds:Array(String)}", f"campaign_id != {NOBODY}",
        "at >= fromUnixTimestamp64Milli({start:Int64})", "opened_ms >= {start:UInt64} AND opened_ms < {end:UInt64}",
    ]  # fmt: skip
    subjects = ", ".join(
        f"concat('mute/mu_', substring(lower(hex(SHA256(concat({kind}, '/', toString(advertiser), '/', {campaign})))), 1, 20))"
        for kind in ("''", "kind_")
        for campaign in ("'all'", "toString(campaign)")
    )
    return client.rows(
        "WITH episodes AS (SELECT id, any(toString(kind)) AS kind_, any(advertiser_id) AS advertiser, any(campaign_id) AS campaign,"
        " argMax(toString(state), version) AS last_state, toUnixTimestamp64Milli(min(at)) AS from_ms,"
        " if(last_state = 'open', {now:Int64}, toUnixTimestamp64Milli(max(at))) AS to_ms"
        f" FROM {db}.{TABLE} WHERE {' AND '.join(within)} GROUP BY id),"
        " muted AS (SELECT subject, toUnixTimestamp64Milli(at) AS from_ms, action, least(toUnixTimestamp64Milli(leadInFrame("
        "toNullable(at), 1, toDateTime64('2200-01-01 00:00:00', 3, 'UTC')) OVER (PARTITION BY subject ORDER BY at"
        " ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)),"
        " toUnixTimestamp64Milli(parseDateTime64BestEffortOrZero(extract(detail, ', until (.+)$'), 3, 'UTC'))) AS to_ms"
        f" FROM {db}.audit WHERE action IN ('mute', 'unmute') AND at >= fromUnixTimestamp64Milli({{muted_since:Int64}})),"
        f" mutes_of AS (SELECT DISTINCT e.id AS id FROM (SELECT id, from_ms, to_ms, arrayJoin([{subjects}]) AS subject FROM episodes) AS e"
        " INNER JOIN (SELECT * FROM muted WHERE action = 'mute') AS m ON e.subject = m.subject"
        " WHERE m.from_ms <= e.to_ms AND m.to_ms > e.from_ms)"
        " SELECT kind_, count(), countIf(last_state = 'withdrawn'), countIf(last_state != 'withdrawn' AND id IN mutes_of)"
        " FROM episodes GROUP BY kind_",
        parameters | {"kinds": [*KINDS], "muted_since": parameters["start"] - LONGEST_MS},
    )


def _count_campaign_days(client: ClickHouse, conditions: Sequence[str], parameters: dict[str, Any]) -> int:
    """Days of campaigns with events, each campaign of an advertiser apart, as the detector has them. Within a fraction of a per cent where
    there are many."""
    within = [*conditions, "time >= toDateTime({first:UInt32}, 'UTC') AND time < toDateTime({last:UInt32}, 'UTC')"]
    rows = client.rows(
        "SELECT sum(campaigns) FROM (SELECT time, uniqCombined64(campaign_id, advertiser_id) AS campaigns"
        f" FROM {client.database}.stream_days WHERE {' AND '.join(within)} GROUP BY time)",
        parameters | {"first": parameters["start"] // 1000, "last": parameters["end"] // 1000},
    )
    return int(rows[0][0] or 0)
