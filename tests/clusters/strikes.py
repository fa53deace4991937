"""What is done to clusters while a pipeline runs on them. Each strike ends with all as it was."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from infra.kafka.topics import EVENTS
from tests.clusters.everything import Clusters
from tests.flow import Flow
from tests.product import wait_until

# Halted for longer than a broker's session lasts: others lead its partitions meanwhile.
_HALTED_S = 6.0
_CUT_S = 4.0


@dataclass(frozen=True)
class ClusterStrike:
    """Something that is done, by its name in the report."""

    name: str
    carry_out: Callable[[Clusters, Flow, random.Random], None]


def _kill_leader(clusters: Clusters, flow: Flow, rng: random.Random) -> None:
    kafka = clusters.kafka
    broker = kafka.leader_of(flow.settings.topic(EVENTS), rng.randrange(flow.settings.event_partitions))
    assert broker is not None
    kafka.kill(broker)
    time.sleep(rng.uniform(1.0, 5.0))
    kafka.restart(broker)


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


def _fail_over_redis(clusters: Clusters, _flow: Flow, rng: random.Random) -> None:
    primary = clusters.redis.owner(rng.choice(["{p0}", "{p1}", "{s0}", "{s1}"]))
    clusters.redis.fail_over(primary)
    clusters.redis.restart(primary)


def _move_slot(clusters: Clusters, _flow: Flow, rng: random.Random) -> None:
    from infra.redis.slots import key_slot

    tag = rng.choice(["{p0}", "{p1}", "{s0}", "{s1}"])
    source = clusters.redis.owner(tag)
    target, slot = clusters.redis.other_primary(source), key_slot(tag.encode())
    clusters.redis.begin_move(slot, source, target)
    clusters.redis.move_keys(slot, source, target)
    clusters.redis.end_move(slot, source, target)


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


def _cut_s3(clusters: Clusters, _flow: Flow, _rng: random.Random) -> None:
    clusters.s3.network.cut()
    time.sleep(_CUT_S)
    clusters.s3.network.restore()


def _hang_s3(clusters: Clusters, _flow: Flow, _rng: random.Random) -> None:
    clusters.s3.network.drop()
    time.sleep(_CUT_S)
    clusters.s3.network.restore()


def _kill_worker(_clusters: Clusters, flow: Flow, rng: random.Random) -> None:
    name = rng.choice(sorted(flow.workers))
    flow.workers[name].kill()
    flow.workers[name].wait(10)
    flow.start(name)


def _roll_workers(_clusters: Clusters, flow: Flow, _rng: random.Random) -> None:
    for name in sorted(flow.workers):
        flow.workers[name].send_signal(signal.SIGTERM)
        wait_until(lambda name=name: flow.workers[name].poll() is not None, 10, f"{name} ends")
        flow.start(name)


STRIKES = [
    ClusterStrike("kafka: kill a leader", _kill_leader),
    ClusterStrike("kafka: halt a broker", _halt_broker),
    ClusterStrike("kafka: kill two of three", _kill_two_brokers),
    ClusterStrike("kafka: restart one by one", _roll_kafka),
    ClusterStrike("redis: fail over a primary", _fail_over_redis),
    ClusterStrike("redis: move a slot", _move_slot),
    ClusterStrike("clickhouse: kill a replica", _kill_replica_of_clickhouse),
    ClusterStrike("clickhouse: kill the first", _kill_clickhouse_at_the_door),
    ClusterStrike("s3: cut off", _cut_s3),
    ClusterStrike("s3: hang", _hang_s3),
    ClusterStrike("workers: kill one", _kill_worker),
    ClusterStrike("workers: restart one by one", _roll_workers),
]


def plan(count: int, rng: random.Random) -> list[ClusterStrike]:
    """So many strikes, each kind as often as the others, in any order."""
    strikes = [STRIKES[number % len(STRIKES)] for number in range(count)]
    rng.shuffle(strikes)
    return strikes
