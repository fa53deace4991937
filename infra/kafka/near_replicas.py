"""From which replica each partition is read: its leader, or the one in our rack that the leader names (KIP-392).

A leader that is told a rack answers with the replica to ask instead, if brokers choose by rack (`replica.selector.class`). Traffic
between racks, which clouds charge for, is then what replication needs. A follower may be behind: so it is never believed where it has
no answer, and the leader is asked again once a minute. Before Kafka 3.4 leaders also name one that is out of sync, again and again
(KAFKA-14372): one that a minute later has less than the leader had then is not read from.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

Address = tuple[str, int]

NEAR_S = 60.0
# After a follower had no answer.
_LEADER_ONLY_S = 60.0


class NearReplicas:
    """What leaders have named. The caller has the lock."""

    def __init__(self, rack: str = "", near_s: float = NEAR_S) -> None:
        """`near_s`: after how long the leader is asked again."""
        self._rack, self._near_s = rack, near_s
        self._near: dict[int, tuple[Address, float]] = {}
        self._leader_only: dict[int, float] = {}
        self._leader_ends: dict[int, int] = {}
        """Partition → where its log ended at the leader, when that named the replica."""

    def rack(self, partitions: Collection[int]) -> str:
        """The rack to name in a request for these partitions; empty where one of them has to be read from its leader."""
        now = time.monotonic()
        return "" if any(self._leader_only.get(p, 0.0) > now for p in partitions) else self._rack

    def sources(self, leaders: Mapping[int, Address]) -> dict[int, Address]:
        """Partition → where to read it."""
        if not self._near:
            return dict(leaders)
        now = time.monotonic()
        self._near = {p: near for p, near in self._near.items() if near[1] > now}
        return {p: self._near[p][0] if p in self._near else leader for p, leader in leaders.items()}

    def follow(self, partition: int, address: Address | None, leader_end: int, last_end: int) -> None:
        """A leader, whose log ends at `leader_end`, has named the replica at `address` (None: one that is not known). `last_end`: where the
        log ended by the last answer with messages, or without any."""
        if address is None or last_end < self._leader_ends.pop(partition, -1):
            self.avoid(partition)
        else:
            self._near[partition] = (address, time.monotonic() + self._near_s)
            self._leader_ends[partition] = leader_end

    def avoid(self, partition: int) -> None:
        """Read a partition from its leader for a while: the replica that it named had no answer."""
        self._near.pop(partition, None)
        self._leader_ends.pop(partition, None)
        self._leader_only[partition] = time.monotonic() + _LEADER_ONLY_S

    def avoid_address(self, address: Address) -> None:
        """The same for all partitions that are read there."""
        for partition in [p for p, near in self._near.items() if near[0] == address]:
            self.avoid(partition)
