"""From a load to cores, memory, disk and traffic of each part, by measured constants. Pure.

Each quantity of work is a rate: events, cells and rows of a second. [docs/planning.md](../../docs/planning.md) tells what is behind
each formula, and how far predictions were from measurements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from infra.errors import UserError
from infra.planning.constants import Constants, LinearCost, Work
from infra.planning.traffic import Traffic

GB = 1e9
MINUTE_S, HOUR_S, DAY_S = 60, 3_600, 86_400
REGISTERS = 8_192
"""Of users, for each campaign and hour or day."""
KEPT_DAYS = {"stream_hours": 66, "stream_days": 735, "exact_hours": 735, "exact_days": 735}
"""How long ClickHouse keeps rows, by the TTLs of its tables; those of reach are the same."""
REPLICATED_TOPICS = ("ad_archive", "ad_blocks", "ad_minutes", "ad_hours")
STATE_TOPICS = ("ad_minute_state", "ad_hour_state", "ad_day_state")
WORKERS = ("ingest", "archive", "stream")
SERVERS = ("kafka", "redis", "clickhouse")
_SETTLED_S = HOUR_S
"""Windows stay in a worker's memory for so long after their end."""


@dataclass(frozen=True)
class Demand:
    """What an installation is planned for."""

    events_per_s: float
    """On average of a day."""
    campaigns: int
    horizon_s: float
    """Within which copies are caught."""
    retention_s: float
    """Of `ad-events`."""
    replicas: int
    """Of each topic. Redis and ClickHouse have two where this is more than one."""
    peak: float
    """The busiest time, as a multiple of the average: cores and memory are for it."""
    archive_days: float
    stage_retention_s: float
    hot_hours: float
    flush_s: float
    answers_per_s: float
    core_speed: float
    """How many times as fast a core is as the one that the constants are of."""
    utilization: float
    """The share of a core that is planned with."""
    night_hours: float
    """How long the nightly run may take."""
    near_replicas: bool
    """Whether ingest reads from a replica in its own zone."""

    @property
    def store_replicas(self) -> int:
        """Of Redis and of ClickHouse."""
        return min(self.replicas, 2)


def live_work(traffic: Traffic, rate: float, flush_s: float) -> Work:
    """What a second of live traffic is: flushes every `flush_s`, windows that close as long after they began as they last."""
    hours = (traffic.rows(rate * HOUR_S) + traffic.occupied(rate * HOUR_S, REGISTERS)) / HOUR_S
    days = (traffic.rows(rate * DAY_S) + traffic.occupied(rate * DAY_S, REGISTERS)) / DAY_S
    cells = traffic.cells(rate * flush_s) / flush_s
    return Work(seconds=1.0, events=rate, cells=cells, rows=hours + days, spread=rate * math.log(traffic.campaigns))


def stored_work(traffic: Traffic, rows: float) -> Work:
    """Rows of a table."""
    return Work(rows=rows, spread=rows * math.log(traffic.campaigns))


@dataclass(frozen=True)
class Sizing:
    """What a demand comes to."""

    demand: Demand
    traffic: Traffic
    constants: Constants

    # -- work ------------------------------------------------------------------------------------------------------

    @property
    def peak_rate(self) -> float:
        """Events a second in the busiest time."""
        return self.demand.events_per_s * self.demand.peak

    @cached_property
    def peak_work(self) -> Work:
        """Of a second of the busiest time."""
        return live_work(self.traffic, self.peak_rate, self.demand.flush_s)

    @cached_property
    def mean_work(self) -> Work:
        """Of an average second."""
        return live_work(self.traffic, self.demand.events_per_s, self.demand.flush_s)

    def _cores(self, cost: LinearCost, work: Work, instances: float = 1.0) -> float:
        """Cores that are busy all the time, of the planned speed."""
        core_us = self.constants.measure("bare_loop_us") / self.demand.core_speed
        return cost.of(work, instances) * core_us / 1e6

    # -- processes -------------------------------------------------------------------------------------------------

    @cached_property
    def workers(self) -> dict[str, int]:
        """How many of each kind: two at least, so that one can take over. A stream worker that starts reads all that it holds."""
        counts = {kind: self._count_workers(self.constants.cpu[kind]) for kind in WORKERS} | {"notify": 2}
        by_memory = math.ceil(self.window_gb / self.constants.assumption("stream_worker_gb"))
        return counts | {"stream": max(counts["stream"], by_memory)}

    def _count_workers(self, cost: LinearCost) -> int:
        idle = Work(seconds=1.0)
        each = self.constants.assumption("worker_cores") * self.demand.utilization - self._cores(cost, idle)
        if each <= 0:
            raise UserError(
                "a core is too slow for a worker without any event", hint="raise --core-speed or --utilization"
            )
        return max(2, math.ceil(self._cores(cost, self.peak_work, 0.0) / each))

    @property
    def partitions(self) -> int:
        """Of `ad-events` and `ad-archive`."""
        return 4 * self.workers["ingest"]

    @property
    def shards(self) -> int:
        """Partitions of `ad-blocks`, and of the topics behind it."""
        return 4 * self.workers["stream"]

    @cached_property
    def processes(self) -> dict[str, int]:
        """How many of each kind, backends included."""
        node_cores = self.constants.assumption("node_cores") * self.demand.utilization
        node_gb = self.constants.assumption("node_ssd_gb")
        kafka_gb, clickhouse_gb = self.disk_gb("kafka"), self.disk_gb("clickhouse")
        copies, cores = self.demand.store_replicas, self.busy_cores
        primaries = max(
            math.ceil(self.redis_bytes / GB / self.constants.assumption("redis_node_gb")),
            math.ceil(cores["redis"] / copies / self.demand.utilization),
        )
        clickhouse = max(cores["clickhouse"] / node_cores, clickhouse_gb / node_gb)
        return {
            **self.workers,
            "router": max(2, math.ceil(cores["router"] / self.demand.utilization)),
            "kafka": max(self.demand.replicas, math.ceil(cores["kafka"] / node_cores), math.ceil(kafka_gb / node_gb)),
            "redis": copies * max(1, primaries),
            "clickhouse": copies * max(1, math.ceil(clickhouse / copies)),
        }

    # -- cores -----------------------------------------------------------------------------------------------------

    @cached_property
    def busy_cores(self) -> dict[str, float]:
        """Cores that are busy in the busiest time, by part."""
        cpu, work, streams = self.constants.cpu, self.peak_work, self.workers["stream"]
        cores = {kind: self._cores(cpu[kind], work, self.workers[kind]) for kind in WORKERS}
        router_us = self.constants.measure("answer_us") / self.demand.core_speed
        # Followers of a partition write what its leader writes.
        kafka = self._cores(cpu["kafka"], work, streams) * self.demand.replicas
        return cores | {
            "router": self._cores(cpu["router"], Work(seconds=1.0), 2) + self.demand.answers_per_s * router_us / 1e6,
            "kafka": kafka,
            "redis": self._cores(cpu["redis"], work, streams) * self.demand.store_replicas,
            "clickhouse": self._cores(cpu["clickhouse"], work, streams) * self.demand.store_replicas,
        }

    @cached_property
    def cores(self) -> dict[str, float]:
        """Cores to provide, by part: some for each server, however little it does. Those of Spark are for the hours of the nightly run
        alone."""
        busy = self.busy_cores | {"spark": self.night_cpu_s / (self.demand.night_hours * HOUR_S)}
        least = {part: self.processes[part] * self.constants.assumption(f"{part}_least_cores") for part in SERVERS}
        return {part: max(cores / self.demand.utilization, least.get(part, 0.0)) for part, cores in busy.items()}

    @property
    def night_cpu_s(self) -> float:
        """Of a nightly run."""
        events = self.demand.events_per_s * DAY_S
        return self._cores(self.constants.cpu["spark"], Work(seconds=1.0, events=events))

    # -- memory ----------------------------------------------------------------------------------------------------

    @property
    def ids(self) -> float:
        """Ids of events that are recorded: of the current generation and of the one before."""
        return 2 * self.demand.horizon_s * self.peak_rate

    @property
    def window_rows(self) -> dict[str, float]:
        """Rows of windows in the memory of stream workers, by stage."""
        rows, peak, mean = self.traffic.rows, self.peak_rate, self.demand.events_per_s
        return {
            "ad_minute_state": rows(peak * MINUTE_S) * (_SETTLED_S / MINUTE_S + 1),
            "ad_hour_state": rows(peak * HOUR_S) * 2,
            "ad_day_state": rows(mean * DAY_S) * (1 + _SETTLED_S / DAY_S),
        }

    @property
    def window_gb(self) -> float:
        """Memory of these rows."""
        return sum(self.window_rows.values()) * self.constants.measure("stream_row_bytes") / GB

    @property
    def hot_bytes(self) -> float:
        """Of minutes in Redis."""
        rate = self.demand.events_per_s * MINUTE_S
        minutes = (self.demand.hot_hours + 2) * HOUR_S / MINUTE_S
        row, cell = self.constants.measure("redis_row_bytes"), self.constants.measure("redis_cell_bytes")
        return minutes * (self.traffic.rows(rate) * row + self.traffic.cells(rate) * cell)

    @property
    def id_bytes(self) -> float:
        """Of ids in Redis."""
        return self.ids * self.constants.measure("redis_id_bytes")

    @property
    def redis_bytes(self) -> float:
        """Of all keys, without replicas."""
        return self.hot_bytes + self.id_bytes

    @cached_property
    def memory_gb(self) -> dict[str, float]:
        """To provide, by part and what it is for."""
        constants, count = self.constants, self.processes
        base = {kind: count[kind] * constants.measure(f"{kind}_process_gb") for kind in (*WORKERS, "router")}
        redis = constants.assumption("redis_headroom") * self.demand.store_replicas / GB
        cached_s = constants.assumption("page_cache_s")
        spark_gb = self.cores["spark"] * constants.measure("spark_core_gb")
        return {
            "ingest": base["ingest"]
            + self.partitions * constants.measure("open_segment_gb")
            + self.ids * constants.measure("ingest_id_bytes") / GB,
            "archive": base["archive"],
            "stream": base["stream"] + self.window_gb,
            "router": base["router"],
            "kafka": count["kafka"] * constants.assumption("kafka_heap_gb")
            + sum(self.kafka_bytes_per_s.values()) * self.demand.peak * cached_s * self.demand.replicas / GB,
            "redis, ids": self.id_bytes * redis,
            "redis, minutes": self.hot_bytes * redis,
            "clickhouse": self.cores["clickhouse"] * constants.assumption("clickhouse_core_gb"),
            "spark": spark_gb,
        }  # fmt: skip

    # -- disk ------------------------------------------------------------------------------------------------------

    @cached_property
    def kafka_bytes_per_s(self) -> dict[str, float]:
        """Written to each topic on average, by one replica."""
        topics = ("ad_events", *REPLICATED_TOPICS, *STATE_TOPICS)
        streams = {topic: self.workers["stream"] for topic in topics if topic != "ad_events"}
        written = self.constants.written
        return {topic: written[topic].of(self.mean_work, streams.get(topic, 1)) for topic in topics}

    @cached_property
    def disks_gb(self) -> dict[str, float]:
        """To provide, by part and what it is for; the archive is in an object store."""
        demand, rows, rate = self.demand, self.traffic.rows, self.demand.events_per_s
        written = self.kafka_bytes_per_s
        kept = {"ad_events": demand.retention_s} | dict.fromkeys(REPLICATED_TOPICS, demand.stage_retention_s)
        logs = {topic: written[topic] * seconds for topic, seconds in kept.items()}
        state_factor = self.constants.assumption("state_log_factor")
        state = sum(
            self.window_rows[topic] * self.constants.measure("state_row_bytes") * state_factor for topic in STATE_TOPICS
        )
        registers = self.traffic.occupied
        coupon = {grain: self.constants.measure(f"coupon_{grain}_bytes") for grain in ("hours", "days")}
        # Tables of hours have 24 times as many windows; those of reach are kept as long as those of rows.
        per_day = {"hours": 24 * rows(rate * HOUR_S), "days": rows(rate * DAY_S)}
        users = {"hours": 24 * registers(rate * HOUR_S, REGISTERS), "days": registers(rate * DAY_S, REGISTERS)}
        clickhouse = {
            f"clickhouse, {table}": KEPT_DAYS[table]
            * (
                self.constants.stored[table].of(stored_work(self.traffic, per_day[grain]))
                + users[grain] * coupon[grain]
            )
            for table in KEPT_DAYS
            if (grain := table.split("_")[1])
        }
        replicated = {
            "kafka, ad-events": logs.pop("ad_events") * demand.replicas,
            "kafka, other topics": (sum(logs.values()) + state) * demand.replicas,
            # While the log is rewritten there are the old one, at twice the size of the data, and the new one.
            "redis, log": 3 * self.redis_bytes * demand.store_replicas,
        } | {name: size * demand.store_replicas for name, size in clickhouse.items()}
        free = self.constants.assumption("disk_headroom")
        archive = self.constants.written["archive"].of(self.mean_work, self.workers["archive"])
        return {name: size * free / GB for name, size in replicated.items()} | {
            "archive": archive * DAY_S * demand.archive_days / GB
        }

    def disk_gb(self, part: str) -> float:
        """All of a part's."""
        return sum(size for name, size in self.disks_gb.items() if name.split(",")[0] == part)

    # -- network ---------------------------------------------------------------------------------------------------

    @cached_property
    def network_bytes_per_s(self) -> dict[str, float]:
        """On average, by what is carried."""
        written, copies = self.kafka_bytes_per_s, self.demand.store_replicas
        total, state = sum(written.values()), sum(written[topic] for topic in STATE_TOPICS)
        log = self.constants.written["redis_log"].of(self.mean_work, self.workers["stream"])
        return {
            "producers to kafka": written["ad_events"],
            "workers to kafka": total - written["ad_events"],
            "between brokers": total * (self.demand.replicas - 1),
            "kafka to ingest": written["ad_events"],
            # Reach reads the archive's topic a second time.
            "kafka to other workers": total - written["ad_events"] - state + written["ad_archive"],
            "workers to redis": log,
            "between redis servers": log * (copies - 1),
            "archive to object store": self.constants.written["archive"].of(self.mean_work, self.workers["archive"]),
        }

    @cached_property
    def zone_bytes_per_s(self) -> float:
        """On average, from one zone to another, of three: a client's server is in another zone two times in three; all replicas are.
        An object store is in none."""
        carried = dict(self.network_bytes_per_s)
        carried.pop("archive to object store")
        if self.demand.near_replicas:
            carried.pop("kafka to ingest")
        replicas = {name: carried.pop(name) for name in ("between brokers", "between redis servers")}
        return sum(carried.values()) * 2 / 3 + sum(replicas.values())
