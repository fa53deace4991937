"""What is done to clusters while a pipeline runs on them. Each strike ends with all as it was."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from infra.kafka.topics import EVENTS, INGEST_GROUP, STREAM_GROUP
from infra.redis.slots import key_slot
from tests import next_version
from tests.clusters.everything import Clusters
from tests.clusters.redis_cluster import RedisNode
from tests.clusters.tcp_proxy import Proxy
from tests.flow import Flow
from tests.product import wait_until

# Halted for longer than a broker's session lasts: others lead its partitions meanwhile.
_HALTED_S = 6.0
_TROUBLE_S, _DELAY_S = 5.0, 0.2
_UPGRADED = ("archive", "stream", "ingest")
_MORE = ("ingest-2", "stream-2")
# How many members have partitions then; of the stream each worker is one.
_MEMBERS = {INGEST_GROUP: 3, STREAM_GROUP: 3}
_TAGS = ("{p0}", "{p1}", "{s0}", "{s1}")


@dataclass(frozen=True)
class ClusterStrike:
    """Something that is done, by its name in the report: in steps, behind each of which answers become fresh again."""

    name: str
    carry_out: Callable[[Clusters, Flow, random.Random], None]
    then: ClusterStrike | None = None


# -- Kafka --------------------------------------------------------------------------------------------------------------


def _kill_broker(clusters: Clusters, broker: int, rng: random.Random) -> None:
    clusters.kafka.kill(broker)
    time.sleep(rng.uniform(1.0, 5.0))
    clusters.kafka.restart(broker)


def _kill_leader(clusters: Clusters, flow: Flow, rng: random.Random) -> None:
    broker = clusters.kafka.leader_of(flow.settings.topic(EVENTS), rng.randrange(flow.settings.event_partitions))
    assert broker is not None
    _kill_broker(clusters, broker, rng)


def _kill_controller(clusters: Clusters, _flow: Flow, rng: random.Random) -> None:
    _kill_broker(clusters, clusters.kafka.controller, rng)


def _halt_broker(clusters: Clusters, _flow: Flow, rng: random.Random) -> None:
    broker = rng.choice(clusters.kafka.running)
    clusters.kafka.halt(broker)
    time.sleep(_HALTED_S)
    clusters.kafka.resume(broker)
    clusters.kafka.wait_until_ready()


def _kill_two_brokers(clusters: Clusters, _flow: Flow, rng: random.Random) -> None:
    brokers = rng.sample(clusters.kafka.running, 2)
    for broker in brokers:
        clusters.kafka.kill(broker)
    time.sleep(rng.uniform(1.0, 4.0))
    for broker in brokers:
        clusters.kafka.restart(broker)


def _roll_kafka(clusters: Clusters, _flow: Flow, _rng: random.Random) -> None:
    for broker in sorted(clusters.kafka.running):
        clusters.kafka.stop(broker)
        clusters.kafka.restart(broker)


# -- Redis --------------------------------------------------------------------------------------------------------------


def _a_primary(clusters: Clusters, rng: random.Random) -> RedisNode:
    return clusters.redis.owner(rng.choice(_TAGS))


def _fail_over_redis(clusters: Clusters, _flow: Flow, rng: random.Random) -> None:
    primary = _a_primary(clusters, rng)
    clusters.redis.fail_over(primary)
    clusters.redis.restart(primary)


def _move_slot(clusters: Clusters, _flow: Flow, rng: random.Random) -> None:
    tag = rng.choice(_TAGS)
    source = clusters.redis.owner(tag)
    target, slot = clusters.redis.other_primary(source), key_slot(tag.encode())
    clusters.redis.begin_move(slot, source, target)
    clusters.redis.move_keys(slot, source, target)
    clusters.redis.end_move(slot, source, target)


def _roll_redis(clusters: Clusters, _flow: Flow, _rng: random.Random) -> None:
    for node in clusters.redis.nodes:
        if node.client.info("replication")["role"] == "master":
            clusters.redis.hand_over(node)
        node.kill()
        clusters.redis.restart(node)


# -- ClickHouse ---------------------------------------------------------------------------------------------------------


def _kill_replica_of_clickhouse(clusters: Clusters, _flow: Flow, rng: random.Random) -> None:
    # The first one is the one that all clients talk to.
    node = rng.choice(clusters.clickhouse.nodes[1:])
    node.kill()
    time.sleep(rng.uniform(1.0, 4.0))
    node.start()


def _kill_clickhouse_at_the_door(clusters: Clusters, _flow: Flow, rng: random.Random) -> None:
    node = clusters.clickhouse.nodes[0]
    node.kill()
    time.sleep(rng.uniform(1.0, 4.0))
    node.start()


def _roll_clickhouse(clusters: Clusters, _flow: Flow, _rng: random.Random) -> None:
    for node in clusters.clickhouse.nodes:
        node.kill()
        node.start()


# -- workers ------------------------------------------------------------------------------------------------------------


def _kill_worker(_clusters: Clusters, flow: Flow, rng: random.Random) -> None:
    name = rng.choice(sorted(flow.workers))
    flow.workers[name].kill()
    flow.workers[name].wait(10)
    flow.start(name)


def _roll_workers(_clusters: Clusters, flow: Flow, _rng: random.Random) -> None:
    for name in sorted(flow.workers):
        flow.stop(name)
        flow.start(name)


def _add_workers(clusters: Clusters, flow: Flow, _rng: random.Random) -> None:
    for name in _MORE:
        flow.start(name)
    admin = clusters.kafka.admin()
    groups = {flow.settings.topic(group): members for group, members in _MEMBERS.items()}

    def have_joined() -> bool:
        described = admin.describe_consumer_groups(list(groups))
        counts = {
            group: sum(bool(member.assignment.topic_partitions) for member in future.result().members)
            for group, future in described.items()
        }
        return counts == groups

    wait_until(have_joined, 20, "the new workers have partitions")


def _remove_workers(_clusters: Clusters, flow: Flow, _rng: random.Random) -> None:
    for name in _MORE:
        flow.stop(name)
        del flow.workers[name]


def _upgrade_workers(_clusters: Clusters, flow: Flow, _rng: random.Random) -> None:
    """To a release with the next schema version, readers first. Of the stream a worker reads what others write: those that are still
    old stop as soon as they find what they cannot read."""
    version = next_version.of(flow.variables) + 1
    for name in sorted(flow.workers, key=lambda name: _UPGRADED.index(name.split("-")[0])):
        flow.stop(name)
        flow.start(name, **next_version.variables(version))
        time.sleep(1.0)
    flow.variables |= next_version.variables(version)


def _roll_everything(clusters: Clusters, flow: Flow, rng: random.Random) -> None:
    for roll in (_roll_kafka, _roll_redis, _roll_clickhouse, _roll_workers):
        roll(clusters, flow, rng)


# -- networks -----------------------------------------------------------------------------------------------------------

_NETWORKS: dict[str, Callable[[Clusters, random.Random], Proxy | None]] = {
    "kafka: network of a broker": lambda clusters, rng: clusters.kafka.proxies[rng.choice(clusters.kafka.running)],
    "redis: network of a primary": lambda clusters, rng: _a_primary(clusters, rng).network,
    "clickhouse: network of the first": lambda clusters, _: clusters.clickhouse.nodes[0].door,
    "clickhouse: network of a replica": lambda clusters, rng: rng.choice(clusters.clickhouse.nodes[1:]).network,
    "s3: network": lambda clusters, _: clusters.s3.network,
}
_TROUBLES: dict[str, Callable[[Proxy], None]] = {
    "cut": Proxy.cut,
    "hangs": Proxy.drop,
    "slow": lambda network: network.delay(_DELAY_S),
}


def _trouble(name: str, trouble: str) -> ClusterStrike:
    def carry_out(clusters: Clusters, _flow: Flow, rng: random.Random) -> None:
        network = _NETWORKS[name](clusters, rng)
        assert network is not None
        _TROUBLES[trouble](network)
        time.sleep(_TROUBLE_S)
        network.restore()

    return ClusterStrike(f"{name}, {trouble}", carry_out)


STRIKES = [
    ClusterStrike("kafka: kill a leader", _kill_leader),
    ClusterStrike("kafka: kill the controller", _kill_controller),
    ClusterStrike("kafka: halt a broker", _halt_broker),
    ClusterStrike("kafka: kill two of three", _kill_two_brokers),
    ClusterStrike("kafka: restart one by one", _roll_kafka),
    ClusterStrike("redis: fail over a primary", _fail_over_redis),
    ClusterStrike("redis: move a slot", _move_slot),
    ClusterStrike("clickhouse: kill a replica", _kill_replica_of_clickhouse),
    ClusterStrike("clickhouse: kill the first", _kill_clickhouse_at_the_door),
    *(_trouble(network, trouble) for network in _NETWORKS for trouble in _TROUBLES),
    ClusterStrike("workers: kill one", _kill_worker),
    ClusterStrike("workers: restart one by one", _roll_workers),
    ClusterStrike("workers: add two", _add_workers, then=ClusterStrike("workers: remove two", _remove_workers)),
    ClusterStrike("workers: upgrade one by one", _upgrade_workers),
    ClusterStrike("everything: restart one by one", _roll_everything),
]


def plan(count: int, rng: random.Random) -> list[ClusterStrike]:
    """So many strikes in any order, no kind more than once more often than another."""
    rounds, rest = divmod(count, len(STRIKES))
    strikes = [*STRIKES * rounds, *rng.sample(STRIKES, rest)]
    rng.shuffle(strikes)
    return strikes
