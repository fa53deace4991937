"""The four stages: what each reads, and what it writes."""

from __future__ import annotations

from dataclasses import dataclass

from infra.kafka import topics
from infra.settings import Settings
from stream.closing import GRAINS
from stream.flush_policy import FlushPolicy, Fresh, Patient


@dataclass(frozen=True)
class Stage:
    """One step of the cascade. `source`, `state_topic`, `output` and `totals` are topics without the namespace."""

    name: str
    grain_ms: int
    """Its window."""
    source: str
    state_topic: str
    flush_policy: FlushPolicy
    output: str | None = None
    """None: no stage comes after this one."""
    totals: str | None = None
    """Where the sums by campaign go, for a stage that needs no other dimension."""
    joins: bool = False
    """Whether all shards of the stage before write to its one partition."""
    is_fresh: bool = False
    """Whether readers wait for what it shows. Hours and days are answered from minutes until they close."""

    def partitions(self, settings: Settings) -> int:
        """How many partitions its topics have."""
        return 1 if self.joins else settings.block_partitions


MINUTE = Stage(
    "minute",
    GRAINS["minute"],
    topics.BLOCKS,
    topics.MINUTE_STATE,
    Fresh(),
    output=topics.MINUTES,
    totals=topics.CAMPAIGN_TOTALS,
    is_fresh=True,
)
HOUR = Stage("hour", GRAINS["hour"], topics.MINUTES, topics.HOUR_STATE, Patient(), output=topics.HOURS)
DAY = Stage("day", GRAINS["day"], topics.HOURS, topics.DAY_STATE, Patient(shift=0.5))
INSIGHT = Stage("insight", GRAINS["minute"], topics.CAMPAIGN_TOTALS, topics.CAMPAIGN_STATE, Patient(), joins=True)
"""Minutes of campaigns once more, for the detector. A busy campaign is spread over shards, so its minutes close when all have closed them."""
STAGES = {stage.name: stage for stage in (MINUTE, HOUR, DAY, INSIGHT)}
