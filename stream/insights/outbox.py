"""What a shard has said of its campaigns so far, as the outbox has it, and what is left to be said after minutes were judged anew.

Late events may have changed these minutes since, so that the same alert now goes another way. A version is sent once: what differs
from it is the next version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infra.clickhouse.alerts import TABLE, Alert
from infra.clickhouse.client import ClickHouse
from stream.insights.alerting import ALL_SILENT, Alerting, RunningAlert
from stream.insights.rules import KINDS

_DAYS = 30


@dataclass(frozen=True)
class Said:
    """The newest version of an alert."""

    alert: Alert

    @property
    def outcome(self) -> tuple[str, str]:
        """What a reader takes from it."""
        return self.alert.state, self.alert.severity


def read_said(client: ClickHouse, shard: int) -> dict[str, Said]:
    """The alerts of a shard, by id. Raises Unavailable."""
    names = ("kind", "severity", "state", "advertiser_id", "campaign_id", "opened_ms", "ended_ms", "summary")
    rows: list[Any] = client.rows(
        f"SELECT id, max(version), argMax(tuple({', '.join(names)}), version) FROM {client.database}.{TABLE}"
        " WHERE kind IN {kinds:Array(String)} AND JSONHas(detail, 'shard') AND JSONExtractUInt(detail, 'shard') = {shard:UInt32}"
        " AND at > now() - toIntervalDay({days:UInt32}) GROUP BY id",
        {"kinds": [*KINDS, ALL_SILENT], "shard": shard, "days": _DAYS},
    )
    return {
        id_: Said(Alert(id_, int(version), **dict(zip(names, newest, strict=True)), detail={"shard": shard}))
        for id_, version, newest in rows
    }


def left_to_say(
    alerts: Sequence[Alert], said: Mapping[str, Said], alerting: Alerting, ended_ms: int, *, anew: bool
) -> list[Alert]:
    """What to send of `alerts`, which follow from minutes that were judged anew, given what was said; and how other open alerts end.

    `anew`: the detector has begun anew, so that nothing is known of alerts from before.
    """
    remembered, by_id = alerting.by_id(), dict[str, list[Alert]]()
    for alert in alerts:
        by_id.setdefault(alert.id, []).append(alert)
    left = list[Alert]()
    for id_, own in by_id.items():
        left += own if id_ not in said else _beyond(own, said[id_], remembered.get(id_))
    for id_, former in said.items():
        if id_ in by_id:
            continue
        known = remembered.get(id_)
        if known is not None and not known.closed and known.version < former.alert.version:
            same = former.outcome == ("open", known.severity)
            known.version = former.alert.version + (0 if same else 1)
            left += [] if same else [alerting.tell_open(known)]
        elif known is None and former.alert.state == "open":
            state = "closed" if anew else "withdrawn"
            left.append(replace(former.alert, version=former.alert.version + 1, state=state, ended_ms=ended_ms))
    return left


def _beyond(own: Sequence[Alert], former: Said, episode: RunningAlert | None) -> list[Alert]:
    """What is left of the versions of an alert, which `episode` is where it is remembered."""
    newest = former.alert.version
    if any(a.version == newest and (a.state, a.severity) == former.outcome for a in own):
        return [a for a in own if a.version > newest]
    if own[0].version > newest:
        return list(own)
    last = own[-1]
    version = newest if (last.state, last.severity) == former.outcome else newest + 1
    if episode is not None:
        episode.version = version
    return [] if version == newest else [replace(last, version=version)]
