"""The alerts of the stream that are in the outbox, and what is left to be written after minutes were judged anew.

Late events may have changed these minutes since, so that the same alert now goes another way. A version is written once: what
differs from it is the next version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from infra.clickhouse.alerts import Alert, read_newest
from infra.clickhouse.client import ClickHouse
from stream.insights.alerting import ALL_SILENT, Alerting, RunningAlert
from stream.insights.rules import KINDS

_DAYS = 30


def read_written(client: ClickHouse) -> dict[str, Alert]:
    """The newest versions of the detector's alerts, by id. Raises Unavailable."""
    return read_newest(
        client,
        "kind IN {kinds:Array(String)} AND at > now() - toIntervalDay({days:UInt32})",
        {"kinds": [*KINDS, ALL_SILENT], "days": _DAYS},
    )


def versions_to_write(
    alerts: Sequence[Alert], written: Mapping[str, Alert], alerting: Alerting, ended_ms: int, *, known_ms: int | None
) -> list[Alert]:
    """What to write of `alerts`, which follow from minutes that were judged anew, given what is written already; and how other open alerts end.

    `known_ms`: alerts of minutes before were known, but for those that late events have opened since, which are over; None where the
    detector has begun anew, so that nothing is known of alerts.
    """
    remembered, by_id = alerting.by_id(), dict[str, list[Alert]]()
    for alert in alerts:
        by_id.setdefault(alert.id, []).append(alert)
    left = list[Alert]()
    for id_, own in by_id.items():
        left += own if id_ not in written else _beyond(own, written[id_], remembered.get(id_))
    for id_, former in written.items():
        if id_ in by_id:
            continue
        known = remembered.get(id_)
        if known is not None and not known.closed and known.version < former.version:
            same = (former.state, former.severity) == ("open", known.severity)
            known.version = former.version + (0 if same else 1)
            left += [] if same else [alerting.open_version(known)]
        elif known is None and former.state == "open":
            state = "closed" if known_ms is None or former.opened_ms < known_ms else "withdrawn"
            left.append(replace(former, version=former.version + 1, state=state, ended_ms=ended_ms))
    return left


def _beyond(own: Sequence[Alert], former: Alert, episode: RunningAlert | None) -> list[Alert]:
    """What is left of the versions of an alert, which `episode` is where it is remembered."""
    newest = former.version
    if any(a.version == newest and (a.state, a.severity) == (former.state, former.severity) for a in own):
        return [a for a in own if a.version > newest]
    if own[0].version > newest:
        return list(own)
    last = own[-1]
    version = newest if (last.state, last.severity) == (former.state, former.severity) else newest + 1
    if episode is not None:
        episode.version = version
    return [] if version == newest else [replace(last, version=version)]
