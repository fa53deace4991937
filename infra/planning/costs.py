"""What a sizing costs in a month, by prices; which item is the largest, and what would lower it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from infra.planning.model import DAY_S, GB, Sizing
from infra.planning.prices import Prices

MONTH_HOURS = 730
MONTH_DAYS = MONTH_HOURS / 24

_LEVERS = {
    "kafka, ad-events": "a shorter --retention; producers that compress by zstd; fields that nobody reads left out of events",
    "kafka, other topics": "ADCLICK_BLOCKS_RETENTION_S: how long a stage may be down",
    "redis, minutes": "ADCLICK_HOT_HOURS: minutes are answered for fewer hours, hours and days are not affected",
    "redis, ids": "a shorter --horizon: copies that come later are found by the nightly run alone",
    "redis, log": "fewer bytes in Redis: ADCLICK_HOT_HOURS, a shorter --horizon",
    "clickhouse, stream_hours": "ADCLICK_CLICKHOUSE_STORAGE_POLICY with a volume `slow` on cheaper disks: it takes hours after 32 days",
    "clickhouse, stream_days": "ADCLICK_CLICKHOUSE_STORAGE_POLICY with a volume `slow` on cheaper disks: it takes days after 30 days",
    "clickhouse, exact_hours": "a shorter TTL of the table `exact_hours`, which keeps reconciled hours for two years",
    "clickhouse, exact_days": "ADCLICK_CLICKHOUSE_STORAGE_POLICY with a volume `slow` on cheaper disks: it takes days after 30 days",
    "archive": "ADCLICK_ARCHIVE_KEEP_DAYS, and a cheaper class of storage for days that are reconciled",
    "traffic between zones": "ADCLICK_KAFKA_PROPERTIES=client.rack=… lets ingest read from its own zone (--near-replicas); all in one zone",
    "stream": "larger ADCLICK_FLUSH_MS: fewer cells are written a second; answers are that much older",
    "spark": "a longer night: --night",
}  # fmt: skip
_CORE_LEVER = "fewer, faster cores; autoscaling by the hour, since cores are for the peak"


@dataclass(frozen=True)
class CostItem:
    """A line of the bill."""

    kind: str
    """`cores`, `memory`, `disk`, `object store` or `network`."""
    name: str
    amount: float
    unit: str
    monthly: float

    @property
    def lever(self) -> str:
        """What would lower it."""
        return _LEVERS.get(
            self.name, _CORE_LEVER if self.kind == "cores" else "fewer events a second of the peak: --peak"
        )


def cost_items(sizing: Sizing, prices: Prices) -> list[CostItem]:
    """All lines, each for a month."""
    nights = sizing.demand.night_hours / 24
    items = []
    for part, cores in sizing.cores.items():
        hours = cores * MONTH_HOURS * (nights if part == "spark" else 1)
        items.append(CostItem("cores", part, cores, "cores", hours * prices.core_hour))
    for part, size in sizing.memory_gb.items():
        used = size * (nights if part == "spark" else 1)
        items.append(CostItem("memory", part, size, "GB", used * prices.memory_gb_month))
    for name, size in sizing.disks_gb.items():
        kind, price = ("object store", prices.object_gb_month) if name == "archive" else ("disk", prices.ssd_gb_month)
        items.append(CostItem(kind, name, size, "GB", size * price))
    carried = sizing.zone_bytes_per_s / GB * MONTH_DAYS * DAY_S
    items.append(CostItem("network", "traffic between zones", carried, "GB a month", carried * prices.zone_gb))
    return items


def events_of_month(sizing: Sizing) -> float:
    """By the average rate."""
    return sizing.demand.events_per_s * MONTH_DAYS * DAY_S
