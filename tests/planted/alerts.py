"""The alerts that follow from minutes of campaigns, by the pure parts of the detector alone, and those that were written."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from infra.clickhouse.alerts import Alert
from infra.clickhouse.client import ClickHouse
from infra.clock import MINUTE_MS, iso
from infra.kafka.consumers import read_to_end
from infra.kafka.topics import CAMPAIGN_TOTALS
from infra.settings import Settings
from stream import chunks
from stream.insights.alerting import Alerting, AlertPolicy
from stream.insights.rules import KINDS
from stream.insights.watch import Key, Watch

Numbers = tuple[float, float, float]
"""Impressions, clicks and spend."""
_MEASURES = ("impressions", "clicks", "spend_micros")
# Minutes of a campaign before which nothing is said of it, and how many events its first one has.
_LEARNED, _FEWEST_EVENTS = 120, 3
# Episodes of the last minutes may still be open, and the stage that writes alerts a little behind.
_SETTLED_MS, _PATIENCE_S = 30 * MINUTE_MS, 60.0


def alerts_of(
    minutes: Mapping[int, Mapping[Key, Numbers]], end_ms: int, policy: AlertPolicy | None = None
) -> list[Alert]:
    """All versions, in order. `minutes`: numbers by the start of each closed minute, those before `end_ms`."""
    watch, alerting, alerts = Watch(_LEARNED), Alerting(policy or AlertPolicy()), list[Alert]()
    for at_ms in range(min(minutes, default=end_ms), end_ms, MINUTE_MS):
        rows = minutes.get(at_ms, {})
        keys = np.array(list(rows), np.int64).reshape(-1, 2)
        values = np.array(list(rows.values()), np.float64).reshape(-1, 3)
        places = watch.rows_of(keys[:, 0], keys[:, 1], values[:, :2].sum(axis=1) >= _FEWEST_EVENTS)
        numbers = np.zeros((3, len(watch)))
        numbers[:, places[places >= 0]] = values[places >= 0].T
        alerts += alerting.take(at_ms, watch.take(at_ms, *numbers), watch.expecting)
    return alerts


@dataclass
class ClosedMinutes:
    """The minutes of campaigns over all shards, as `ad-campaign-totals` has them."""

    minutes: dict[int, dict[Key, Numbers]] = field(default_factory=dict)
    closed_ms: int = 0
    """Minutes that end by then were closed by all shards."""
    corrected: set[Key] = field(default_factory=set)
    """Campaigns of which rows came when their minute was closed."""


def read_closed_minutes(settings: Settings) -> ClosedMinutes:
    """Read the topic to its end. Each chunk must go on where the one before of its shard ended: none is missing, none is there twice."""
    topic, closed = settings.topic(CAMPAIGN_TOTALS), ClosedMinutes()
    next_offsets, closed_ms = dict[int, int](), dict.fromkeys(range(settings.block_partitions), 0)
    for message in read_to_end(settings.kafka_connection, topic, 0):
        rows, header = chunks.decode(message.value(), topic)
        if header.part == 0:
            expected = next_offsets.get(header.shard, header.from_offset)
            assert header.from_offset == expected, f"{topic}: {header} after {expected}"
            next_offsets[header.shard] = header.to_offset
        for row in rows.arrow().to_pylist():
            key, at_ms = (row["campaign_id"], row["advertiser_id"]), row["window_ms"]
            if at_ms + MINUTE_MS <= closed.closed_ms:
                closed.corrected.add(key)
            before = closed.minutes.setdefault(at_ms, {}).get(key, (0.0, 0.0, 0.0))
            i, c, s = (known + float(row[name]) for known, name in zip(before, _MEASURES, strict=True))
            closed.minutes[at_ms][key] = (i, c, s)
        if header.part == header.parts - 1:
            closed_ms[header.shard] = header.closing.closed_ms or 0
            closed.closed_ms = min(closed_ms.values())
    return closed


def compare_alerts(settings: Settings, planted: Collection[int]) -> list[str]:
    """How the alerts in ClickHouse differ from those that follow from the topic; empty where they do not.

    Of a campaign whose minutes were all complete when they closed, all versions are compared: what late rows change depends on when they
    came and on when a worker began anew. Of every campaign: that versions are counted from 1 and only the last one ends, and that no two alerts of a kind overlap. `planted`:
    campaigns of which there must be alerts.
    """
    closed = read_closed_minutes(settings)
    cut_ms = closed.closed_ms // MINUTE_MS * MINUTE_MS
    expected = alerts_of(closed.minutes, cut_ms, AlertPolicy.of(settings))

    def steps(alerts: Iterable[Alert]) -> set[tuple[object, ...]]:
        return {
            (a.id, a.version, a.kind, a.state, a.severity, a.campaign_id, iso(a.opened_ms), a.ended_ms)
            for a in alerts
            if (a.campaign_id, a.advertiser_id) not in closed.corrected
            and max(a.opened_ms, a.ended_ms) < cut_ms - _SETTLED_MS
        }

    client = ClickHouse(settings.clickhouse, settings.database)
    due = steps(expected)
    versions = [a for a in read_versions(client) if a.kind in KINDS]
    deadline = time.monotonic() + _PATIENCE_S
    while due - steps(versions) and time.monotonic() < deadline:
        time.sleep(0.5)
        versions = [a for a in read_versions(client) if a.kind in KINDS]
    faults = [f"ALERT missing: {step}" for step in sorted(due - steps(versions), key=str)]
    faults += [f"ALERT unexpected: {step}" for step in sorted(steps(versions) - due, key=str)]
    faults += [f"ALERT none of campaign {c}" for c in planted if not any(a.campaign_id == c for a in versions)]
    faults += faults_of_series(versions)
    campaigns = len({key for rows in closed.minutes.values() for key in rows})
    print(
        f"{len({a.id for a in versions})} alerts in {len(versions)} versions, {len(due)} of them compared with the topic;"
        f" {len(closed.corrected)} of {campaigns} campaigns have late rows"
    )
    return faults


def faults_of_series(versions: Sequence[Alert]) -> list[str]:
    """What is wrong with the versions of each alert, which are in order, and with the alerts of each campaign and kind."""
    by_id, by_kind = dict[str, list[Alert]](), dict[tuple[int, int, str], list[Alert]]()
    for alert in versions:
        by_id.setdefault(alert.id, []).append(alert)
    faults = list[str]()
    for id_, own in by_id.items():
        by_kind.setdefault((own[-1].campaign_id, own[-1].advertiser_id, own[-1].kind), []).append(own[-1])
        if [a.version for a in own] != list(range(1, len(own) + 1)) or any(a.state != "open" for a in own[:-1]):
            faults.append(f"ALERT {id_}: versions {[(a.version, a.state) for a in own]}")
    for key, alerts in by_kind.items():
        ordered = sorted((a for a in alerts if a.state != "withdrawn"), key=lambda a: a.opened_ms)
        faults += [
            f"ALERT {key}: {b.id} opens at {iso(b.opened_ms)}, before {a.id} ends"
            for a, b in pairwise(ordered)
            if not a.ended_ms or b.opened_ms < a.ended_ms
        ]
    return faults


def read_versions(client: ClickHouse) -> list[Alert]:
    """All versions of all alerts that were written, each once, by alert."""
    names = tuple(Alert.__dataclass_fields__)
    rows = client.rows(
        f"SELECT {', '.join(names)} FROM {client.database}.alerts FINAL ORDER BY opened_ms, kind, campaign_id, id, version"
    )
    return [Alert(**dict(zip(names, row, strict=True)) | {"detail": json.loads(row[-1])}) for row in rows]
