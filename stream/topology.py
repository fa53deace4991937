"""The three stages: what each reads, and what it writes."""

from __future__ import annotations

from dataclasses import dataclass

from infra.kafka import topics
from stream.closing import GRAINS
from stream.flush_policy import FlushPolicy, Fresh, Patient


@dataclass(frozen=True)
class Stage:
    """One step of the cascade. `source`, `state_topic` and `output` are topics without the namespace."""

    name: str
    source: str
    state_topic: str
    output: str | None
    """None: no stage comes after this one."""
    flush_policy: FlushPolicy
    is_fresh: bool
    """Whether readers wait for what it shows. Hours and days are answered from minutes until they close."""

    @property
    def grain_ms(self) -> int:
        """Its window."""
        return GRAINS[self.name]


MINUTE = Stage("minute", topics.BLOCKS, topics.MINUTE_STATE, topics.MINUTES, Fresh(), is_fresh=True)
HOUR = Stage("hour", topics.MINUTES, topics.HOUR_STATE, topics.HOURS, Patient(), is_fresh=False)
DAY = Stage("day", topics.HOURS, topics.DAY_STATE, None, Patient(), is_fresh=False)
STAGES = {stage.name: stage for stage in (MINUTE, HOUR, DAY)}
