"""The topics of an installation: names, partition counts and how long each keeps what.

`ensure` is idempotent. The partitions of ad-blocks and of what follows it are fixed when these topics are made; all shards write to
the one of ad-campaign-totals. Those of ad-events can grow: the setting is raised, and `ensure` adds partitions here, too. Partitions
that others have added and no worker has read are left alone; `status` names them.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.clock import DAY_MS, HOUR_MS
from infra.settings import Settings

EVENTS = "ad-events"
DEAD_LETTERS = "ad-events-dead"
SENT_LETTERS = "ad-events-dead-sent"
CANARIES = "ad-canaries"
CAMPAIGN_STATUS = "ad-campaign-status"
BLOCKS = "ad-blocks"
ARCHIVE = "ad-archive"
MINUTES = "ad-minutes"
HOURS = "ad-hours"
CAMPAIGN_TOTALS = "ad-campaign-totals"
MINUTE_STATE = "ad-minute-state"
HOUR_STATE = "ad-hour-state"
DAY_STATE = "ad-day-state"
CAMPAIGN_STATE = "ad-campaign-state"
NAMES = (
    EVENTS, DEAD_LETTERS, SENT_LETTERS, CANARIES, CAMPAIGN_STATUS, BLOCKS, ARCHIVE, MINUTES, HOURS, CAMPAIGN_TOTALS, MINUTE_STATE,
    HOUR_STATE, DAY_STATE, CAMPAIGN_STATE,
)  # fmt: skip
"""Of all topics, without the namespace."""

INGEST_GROUP = "adclick-ingest"
ARCHIVE_GROUP = "adclick-archive"
STREAM_GROUP = "adclick-stream"
REACH_GROUP = "adclick-reach"
GROUPS = (INGEST_GROUP, ARCHIVE_GROUP, STREAM_GROUP, REACH_GROUP)

MIB = 1 << 20


@dataclass(frozen=True)
class Topic:
    """The name, partition count and configuration that a topic should have."""

    name: str
    partitions: int
    config: dict[str, str]


# A replicator sends the time at which the other region's broker had the message: verdicts are then the same in both. A broker's own
# bounds for timestamps would refuse what was late on its way, and stop the replication.
_OF_THE_OTHER_REGION = {
    "message.timestamp.type": "CreateTime",
    "message.timestamp.before.max.ms": str(2**63 - 1),
    "message.timestamp.after.max.ms": str(2**63 - 1),
}


def wanted(settings: Settings) -> list[Topic]:
    """Every topic of the installation."""
    deleted = {"cleanup.policy": "delete"}
    events = {**_kept(settings.events_retention_s), **deleted}
    internal = {**_kept(settings.blocks_retention_s), **deleted, "max.message.bytes": str(4 * MIB)}
    # What a recovery reads is what is alive, and what no segment was closed on since.
    state = {
        "cleanup.policy": "compact",
        "max.message.bytes": str(4 * MIB),
        "segment.ms": str(HOUR_MS),
        "segment.bytes": str(32 * MIB),
        "delete.retention.ms": str(HOUR_MS),
    }
    logged = _OF_THE_OTHER_REGION if settings.passive == "on" else {"message.timestamp.type": "LogAppendTime"}
    p, b = settings.event_partitions, settings.block_partitions
    return [
        Topic(settings.topic(EVENTS), p, {**events, **logged, "max.message.bytes": str(9 * MIB)}),
        Topic(settings.topic(DEAD_LETTERS), p, {"retention.ms": "-1", **deleted, "max.message.bytes": str(16 * MIB)}),
        Topic(settings.topic(SENT_LETTERS), 1, {"cleanup.policy": "compact"}),
        Topic(settings.topic(CANARIES), p, events),
        Topic(settings.topic(CAMPAIGN_STATUS), 1, {"cleanup.policy": "compact"}),
        Topic(settings.topic(ARCHIVE), p, internal),
        Topic(settings.topic(BLOCKS), b, internal),
        Topic(settings.topic(MINUTES), b, internal),
        Topic(settings.topic(HOURS), b, internal),
        Topic(settings.topic(CAMPAIGN_TOTALS), 1, internal),
        Topic(settings.topic(MINUTE_STATE), b, state),
        Topic(settings.topic(HOUR_STATE), b, state),
        Topic(settings.topic(DAY_STATE), b, state),
        Topic(settings.topic(CAMPAIGN_STATE), 1, state),
    ]


def _kept(retention_s: int) -> dict[str, str]:
    """Only closed segments are deleted: eight of them span what is kept."""
    return {"retention.ms": str(retention_s * 1000), "segment.ms": str(min(DAY_MS, retention_s * 1000 // 8))}
