"""What ingest publishes about itself, for `adclick status` and the router: a report of each worker in Redis, and how far each topic is
read. Written and read here alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

import msgspec

from infra.clock import now_ms
from infra.errors import AdclickError, Denied
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.redis.client import Redis
from infra.settings import Settings
from ingest.archive.progress import archived_canary_ms, archived_to
from ingest.counts import Counts
from ingest.position import Position
from ingest.shedding import Level

LEVELS = tuple(level.name.lower() for level in Level)
"""Overload levels as reports have them, the lowest first."""
# For how long a worker's report is shown, and why it stopped; one that is started again and again reports that again.
_REPORT_S, _STOPPED_S = 15, 60
# What waits for ingest is no sign of events where it may be the canaries of a partition: one in hand, and the next one.
_CANARIES_IN_HAND = 2
# A report that Redis took later does not tell the time: its age is counted from then, so its worker's clock would seem to be behind.
_PROMPT_S = 0.5


def _key(prefix: str, worker: str) -> str:
    return f"{prefix}ingest:{worker}"


def publish_report(
    redis: Redis, prefix: str, worker: str, *, level: Level, lag: int, counts: Counts, started_ms: int, sent_ms: int,
    at_ms: int, partitions: Mapping[int, dict[str, Any]],
) -> None:  # fmt: skip
    """Publish a worker's state; best effort. `lag`: messages to read; `started_ms`: when its counts were 0; `sent_ms`: when its
    last blocks were sent; `at_ms`: now."""
    report = {
        "worker": worker, "level": LEVELS[level], "lag": lag, "doubt": counts.doubt, "sent_ms": sent_ms, "at_ms": at_ms,
        "delayed": False, "started_ms": started_ms, "counts": msgspec.structs.asdict(counts),
        "partitions": {str(p): partition for p, partition in partitions.items()},
    }  # fmt: skip
    began_s = monotonic()
    _publish(redis, prefix, report, _REPORT_S)
    if monotonic() - began_s > _PROMPT_S:
        _publish(redis, prefix, report | {"delayed": True}, _REPORT_S)


def publish_stop(redis: Redis, prefix: str, worker: str, error: AdclickError) -> None:
    """Publish why a worker stopped; best effort."""
    _publish(redis, prefix, {"worker": worker, "stopped": str(error)}, _STOPPED_S)


def _publish(redis: Redis, prefix: str, report: dict[str, Any], seconds: int) -> None:
    try:
        redis.call("SET", _key(prefix, report["worker"]), json.dumps(report), "EX", seconds)
    except AdclickError:
        pass


@dataclass(frozen=True)
class IngestReports:
    """`workers`: the reports of running ones, by name. `stopped`: worker → the error that it stopped with. `clocks`: worker → by how many
    seconds its clock is ahead of this machine's."""

    workers: list[dict[str, Any]]
    stopped: dict[str, str]
    clocks: dict[str, float] = field(default_factory=dict)

    @property
    def level(self) -> str:
        """The highest overload level of all workers."""
        return max((w["level"] for w in self.workers), key=LEVELS.index, default="unknown")

    @property
    def sent_ms(self) -> int:
        """When the newest blocks were sent; 0 while none were."""
        return max((w["sent_ms"] for w in self.workers), default=0)

    @property
    def counts(self) -> dict[str, int]:
        """The counts of all workers, added up; each counts since it was started."""
        total = Counter[str](dict.fromkeys(Counts.__struct_fields__, 0))
        for worker in self.workers:
            total.update(worker.get("counts", {}))
        return dict(total)

    def poison_names(self) -> set[str]:
        """What partitions stop before, by the names that operators give."""
        partitions = (partition for worker in self.workers for partition in worker["partitions"].values())
        return {str(partition["poison"]["name"]) for partition in partitions if partition.get("poison")}

    def poisoned(self, topic: str) -> dict[str, str]:
        """TOPIC/PARTITION → what the partition stops before, and what an operator can do."""
        return {
            f"{topic}/{p}": f"{topic}/{p} stops before {poison['name']}: {poison['why']}; repair it, "
            f"or adclick dead-letters set-aside {poison['name']}"
            for worker in self.workers
            for p, partition in worker["partitions"].items()
            if (poison := partition.get("poison"))
        }

    def misdated(self, topic: str) -> dict[str, int]:
        """TOPIC/PARTITION → how many messages have timestamps that cannot be true."""
        return {
            f"{topic}/{p}": int(partition["misdated"])
            for worker in self.workers
            for p, partition in worker["partitions"].items()
            if partition.get("misdated")
        }


def read_reports(redis: Redis, prefix: str) -> IngestReports:
    """The reports that workers have published lately. Raises Unavailable."""
    reports, clocks = list[dict[str, Any]](), dict[str, float]()
    for key in redis.scan_keys(_key(prefix, "*")):
        report = _parse(redis.call("GET", key))
        if report is None:
            continue
        reports.append(report)
        if "at_ms" in report and not report.get("delayed") and (left_ms := _left_ms(redis, key)) is not None:
            # How long ago it was written, by what is left of its time: that takes no clock but the reader's.
            age_ms = _REPORT_S * 1000 - left_ms
            clocks[str(report["worker"])] = (report["at_ms"] + age_ms - now_ms()) / 1000
    running = sorted((r for r in reports if "stopped" not in r), key=lambda r: str(r["worker"]))
    stopped = {str(r["worker"]): str(r["stopped"]) for r in reports if "stopped" in r}
    return IngestReports(running, stopped, clocks)


def _parse(entry: bytes | None) -> dict[str, Any] | None:
    """A report; None where it has expired, or another program wrote the key."""
    try:
        report = json.loads(entry or b"null")
    except ValueError:
        return None
    return report if isinstance(report, dict) and "worker" in report else None


def _left_ms(redis: Redis, key: bytes) -> int | None:
    """After how long a key expires; None where this may not be asked, or it is gone. Raises Unavailable."""
    try:
        left_ms = int(redis.call("PTTL", key))
    except Denied:  # the user is of a release that did not ask
        return None
    return left_ms if left_ms >= 0 else None


@dataclass(frozen=True)
class TopicLags:
    """`lags`: topic → messages to read; `by_partition`: the same, partition by partition. `open_transactions`: TOPIC/PARTITION → offset
    and messages of a producer's transaction. `offsets`: topic → position and last stable offset of each partition. `arrived`: how many messages were ever appended to ad-events; `archived`: up to where, of
    the same, the archive has files, added up over partitions. `read_events`: how many messages of ad-events ingest has read that are no canaries;
    `arrived_events`: with those that wait, where they are more than canaries can be.
    `canaries`: topic → when the last canary of each partition was sent that its readers have passed, 0 where there was none."""

    lags: dict[str, int]
    open_transactions: dict[str, dict[str, int]]
    by_partition: dict[str, list[int]] = field(default_factory=dict)
    offsets: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    arrived: int | None = None
    archived: int | None = None
    read_events: int | None = None
    arrived_events: int | None = None
    canaries: dict[str, list[int]] = field(default_factory=dict)


def read_lags(admin: Admin, settings: Settings) -> TopicLags:
    """How far the topics are read, up to the very end of each log, including what open transactions hold back. Raises Unavailable."""
    partition_counts, status = admin.partitions(), TopicLags({}, {})
    arrived = archived = read_events = arrived_events = None
    for name, group in ((topics.EVENTS, topics.INGEST_GROUP), (topics.ARCHIVE, topics.ARCHIVE_GROUP)):
        topic = settings.topic(name)
        count = partition_counts.get(topic, 0)
        if not count:
            continue
        ends, committed = admin.high_watermarks(topic, count), admin.committed(settings.topic(group), topic, count)
        positions = [c.offset for c in committed]
        if min(positions) < 0:  # nothing read yet: the log may begin later
            positions = [max(at, start) for at, start in zip(positions, admin.starts(topic, count), strict=True)]
        # In a topic of ours the last offset is the marker of a transaction, which no reader's position passes.
        marker = int(name == topics.ARCHIVE)
        lags = [max(0, end - at - marker) for end, at in zip(ends, positions, strict=True)]
        status.lags[topic], status.by_partition[topic] = sum(lags), lags
        stable_ends = admin.ends(topic, count)
        status.offsets[topic] = list(zip(positions, stable_ends, strict=True))
        if name == topics.ARCHIVE:
            archived = sum(archived_to(c.metadata) for c in committed)
            status.canaries[topic] = [archived_canary_ms(c.metadata) for c in committed]
        else:
            arrived = sum(ends)
            # Of one that was never committed the metadata is empty.
            read = [Position.committed(c.offset, c.metadata) for c in committed]
            status.canaries[topic] = [0 if position is None else position.canary_ms for position in read]
            read_events = sum(position.offset - position.canaries for position in read if position is not None)
            arrived_events = read_events + sum(max(0, lag - _CANARIES_IN_HAND) for lag in lags)
            for p, (stable, end) in enumerate(zip(stable_ends, ends, strict=True)):
                if stable < end:
                    status.open_transactions[f"{topic}/{p}"] = {"offset": stable, "messages": end - stable}
    return replace(status, arrived=arrived, archived=archived, read_events=read_events, arrived_events=arrived_events)
