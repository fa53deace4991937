"""What each process does with Kafka, ClickHouse and the archive: `adclick doctor` demands so much of its users, and no more.

The table is that of docs/operating.md. What processes need of Redis is in `infra/redis/rights.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.kafka import topics

MIGRATE = "migrate"
_OF_STAGES = (
    topics.MINUTES, topics.HOURS, topics.CAMPAIGN_TOTALS, topics.MINUTE_STATE, topics.HOUR_STATE, topics.DAY_STATE,
    topics.CAMPAIGN_STATE,
)  # fmt: skip


@dataclass(frozen=True)
class Needs:
    """Topics and groups are named without the namespace. `joins`: groups that it is a member of; `watches`: groups of which it reads how
    far they are. `uses_redis`, `describes_all`: whether it reports in Redis, and looks at topics that it neither reads nor writes. `clickhouse`: one of `grants.ROLES`; `archive`: `read`, or `write`, which is reading and removing, too; both are empty
    where it does not use that backend."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    joins: tuple[str, ...] = ()
    watches: tuple[str, ...] = ()
    is_transactional: bool = False
    uses_redis: bool = True
    describes_all: bool = True
    clickhouse: str = ""
    archive: str = ""


NEEDS = {
    MIGRATE: Needs(clickhouse="migrator"),
    "ingest": Needs(
        reads=(topics.EVENTS, topics.ARCHIVE),
        writes=(topics.BLOCKS, topics.ARCHIVE, topics.DEAD_LETTERS, topics.CANARIES),
        joins=(topics.INGEST_GROUP,),
        is_transactional=True,
    ),
    "archive": Needs(reads=(topics.ARCHIVE,), joins=(topics.ARCHIVE_GROUP,), archive="write"),
    "stream": Needs(
        reads=(topics.BLOCKS, topics.ARCHIVE, *_OF_STAGES),
        writes=_OF_STAGES,
        joins=(topics.STREAM_GROUP, topics.REACH_GROUP),
        is_transactional=True,
        clickhouse="writer",
    ),
    "canary": Needs(writes=(topics.EVENTS,), uses_redis=False, describes_all=False),
    "others": Needs(
        reads=topics.NAMES,
        writes=(topics.EVENTS, topics.SENT_LETTERS, topics.CAMPAIGN_STATUS),
        watches=(topics.INGEST_GROUP, topics.ARCHIVE_GROUP),
        is_transactional=True,
        clickhouse="writer",
        archive="read",
    ),
}
"""`others` are all commands that are not named."""

ALL_BUT_MIGRATE = Needs(
    reads=topics.NAMES, writes=topics.NAMES, joins=topics.GROUPS, is_transactional=True, clickhouse="writer", archive="write"
)  # fmt: skip
