"""Dedup, hot tier and leases on a real Redis Cluster: fail-overs that lose writes, slots that move, nodes that refuse."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pytest

from infra.columnar.columns import Values
from infra.errors import AdclickError, Refused, Unavailable, UserError
from infra.redis.access import RedisAccess
from infra.redis.client import Redis
from infra.redis.commands import pack_command
from infra.redis.eviction import EvictionWatch, eviction_risk
from infra.redis.leases import fence_key
from infra.redis.slots import key_slot
from infra.settings import Settings
from infra.wait_reports import read_waits
from ingest.dedup.digest import digest_ids
from ingest.dedup.registry import Registry, RegistryLost, redis_key
from query.tiers.redis import HotTier
from query.trend_lists import ListHeader, TrendLists
from stream.hot.layout import ShardKeys
from tests.clusters.redis_cluster import RedisCluster, running_cluster
from tests.contracts import RedisContract
from tests.integration.test_hot_tier import MINUTE, START, Shard, at, minutes
from tests.product import PATIENCE, wait_until


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def settings(cluster: RedisCluster) -> Settings:
    """Settings of a namespace of the test's own; there is no other backend."""
    return Settings.model_validate({"redis": cluster.url, "namespace": f"t{uuid.uuid4().hex[:8]}_"})


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    with contextlib.closing(Redis(settings.redis_access, timeout_s=2.0)) as client:
        yield client


class TestRedisOfACluster(RedisContract):
    """All keys of a test are in one slot, as those of a partition are."""

    @pytest.fixture
    def redis(self, cluster: RedisCluster) -> Redis:
        return Redis(cluster.url)

    @pytest.fixture
    def redis_away(self) -> Redis:
        return Redis("redis+cluster://127.0.0.1:1,127.0.0.1:2")

    @pytest.fixture
    def prefix(self, settings: Settings) -> str:
        return f"{{{settings.namespace}}}:"


T = TypeVar("T")


def patiently(call: Callable[[], T]) -> T:
    """What the call returns, once Redis carries it out: as workers do."""
    deadline = time.monotonic() + 10 * PATIENCE
    while True:
        try:
            return call()
        except Unavailable:
            assert time.monotonic() < deadline
            time.sleep(0.02)


# -- routing --------------------------------------------------------------------------------------------------------


def test_pipelines_transactions_scripts_and_scans_reach_the_nodes_of_their_keys(
    cluster: RedisCluster, redis: Redis, settings: Settings
) -> None:
    keys = [f"{settings.key_prefix}{n}" for n in range(60)]
    assert len({cluster.owner(key).port for key in keys}) == 3
    assert redis.pipeline([("SET", key, n) for n, key in enumerate(keys)]) == [b"OK"] * 60
    assert redis.pipeline([("GET", key) for key in reversed(keys)]) == [b"%d" % n for n in reversed(range(60))]
    calls = [[pack_command("INCR", key), pack_command("GET", key)] for key in keys]
    assert redis.transactions(calls) == [[n + 1, b"%d" % (n + 1)] for n in range(60)]
    double = redis.script("return redis.call('GET', KEYS[1]) * ARGV[1]")
    assert [double([key], [2]) for key in keys] == [2 * (n + 1) for n in range(60)]
    assert sorted(redis.scan_keys(f"{settings.key_prefix}*")) == sorted(key.encode() for key in keys)
    assert {memory.server for memory in redis.memories()} == {f"127.0.0.1:{cluster.owner(key).port}" for key in keys}


def test_keys_of_several_slots_in_one_command_are_a_mistake_of_ours(redis: Redis, settings: Settings) -> None:
    a, b = f"{settings.key_prefix}a", f"{settings.key_prefix}b"
    for wrong in (
        lambda: redis.call("UNLINK", a, b),
        lambda: redis.script("return 1")([a, b], []),
        lambda: redis.write_if(a, lambda _: [("SET", a, "x"), ("SET", b, "x")]),
        lambda: redis.transactions([[pack_command("GET", a), pack_command("GET", b)]]),
    ):
        with pytest.raises(AdclickError):
            wrong()
    assert redis.pipeline([("GET", a), ("GET", b)]) == [None, None]


def test_a_single_address_of_a_cluster_and_a_cluster_of_a_single_address_say_what_to_write(
    cluster: RedisCluster, redis: Redis, settings: Settings
) -> None:
    key = next(k for n in range(99) if cluster.owner(k := f"{settings.key_prefix}{n}") is not cluster.nodes[0])
    with pytest.raises(Refused, match=r"redis\+cluster://"):
        Redis(f"redis://{cluster.addresses[0]}").call("GET", key)


def test_what_waits_for_what_is_read_by_the_clock_of_the_node_that_has_it(redis: Redis, settings: Settings) -> None:
    assert read_waits(redis, settings.key_prefix) == {}


def test_lists_of_trends_are_written_to_their_own_slots(redis: Redis, settings: Settings) -> None:
    lists = TrendLists(redis, settings.key_prefix)
    for number in range(3):
        lists.write(ListHeader(1000 + number, 999), [], {})
    assert lists.read(None, 5, 1003) == (ListHeader(1002, 999), [])


def test_a_lease_has_one_holder_and_a_higher_number_for_each(redis: Redis, settings: Settings) -> None:
    name, fences = f"{settings.key_prefix}lease", list[int]()
    for _ in range(3):
        with redis.lease(name, 5, "busy") as fence:
            fences.append(fence)
            assert redis.call("GET", fence_key(name)) == b"%d" % fence
            with pytest.raises(UserError, match="busy"), redis.lease(name, 5, "busy"):
                pass
    assert fences == sorted(set(fences))
    with redis.lease(name, 1, "busy"):
        time.sleep(1.5)  # longer than it lasts unless it is renewed
        with pytest.raises(UserError), redis.lease(name, 1, "busy"):
            pass


def test_a_node_that_may_evict_is_noticed_among_others(cluster: RedisCluster, redis: Redis, settings: Settings) -> None:
    watch = EvictionWatch(redis)
    assert watch.look().reason == eviction_risk(redis) == ""
    node, key = cluster.owner(settings.key_prefix), f"{{{settings.key_prefix}}}:evicted"
    redis.call("SET", key, "x")
    node.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert "allkeys-lru" in watch.look().reason
        node.client.config_set("maxmemory", "1mb")
        with pytest.raises(Refused):  # which has evicted all that it could
            redis.call("SET", key, "y")
        assert watch.look().evicted > 0
    finally:
        node.client.config_set("maxmemory", 0)
        node.client.config_set("maxmemory-policy", "noeviction")
    assert watch.look().reason == ""


# -- slots that move ------------------------------------------------------------------------------------------------


def test_nothing_is_lost_or_counted_twice_while_a_slot_moves_to_and_fro_under_load(
    cluster: RedisCluster, redis: Redis, settings: Settings
) -> None:
    tag = f"{settings.key_prefix}{{m}}"
    keys, head, done = [f"{tag}:{n}" for n in range(8)], f"{tag}:head", threading.Event()
    add = redis.script("return redis.call('INCR', KEYS[1])")
    counted, batches, failures = [0] * len(keys), list[int](), list[BaseException]()

    def count(number: int) -> None:
        key, script = keys[number], number % 2
        while not done.is_set():
            with contextlib.suppress(Refused):
                add([key], []) if script else redis.pipeline([("INCR", key)])
                counted[number] += 1

    def append() -> None:
        client, written = Redis(settings.redis_access), 0

        def accept(value: bytes | None) -> list[tuple[Any, ...]]:
            assert int(value or 0) == written
            return [("RPUSH", f"{tag}:rows", written), ("SET", head, written + 1)]

        while not done.is_set():
            with contextlib.suppress(Refused):
                client.write_if(head, accept)
                written += 1
        batches.append(written)

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    works: list[Callable[[], None]] = [*(partial(count, n) for n in range(len(keys))), append]
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    slot = key_slot(tag.encode())
    for _ in range(4):
        time.sleep(0.1)
        source = cluster.owner(tag)
        target = cluster.other_primary(source)
        cluster.begin_move(slot, source, target)
        cluster.move_keys(slot, source, target, [keys[0].encode(), keys[1].encode(), head.encode()])
        time.sleep(0.1)
        cluster.move_keys(slot, source, target)
        time.sleep(0.05)
        cluster.end_move(slot, source, target)
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [int(value or 0) for value in redis.pipeline([("GET", key) for key in keys])] == counted
    assert min(counted) > 20
    assert redis.call("LRANGE", f"{tag}:rows", 0, -1) == [b"%d" % n for n in range(batches[0])]
    assert batches[0] > 20


def test_a_scan_of_a_slot_sees_its_keys_on_both_nodes_while_it_moves(
    cluster: RedisCluster, redis: Redis, settings: Settings
) -> None:
    keys = ShardKeys.of(settings.key_prefix, 5)
    hours = [keys.hour(n) for n in range(50)]
    redis.pipeline([("HSET", key, "f", "x") for key in hours])
    slot, source = key_slot(keys.span), cluster.owner(keys.span.decode())
    target = cluster.other_primary(source)
    cluster.begin_move(slot, source, target)
    cluster.move_keys(slot, source, target, hours[:25])
    assert sorted(redis.scan_keys(keys.hours())) == sorted(hours)
    cluster.move_keys(slot, source, target)
    cluster.end_move(slot, source, target)
    assert sorted(redis.scan_keys(keys.hours())) == sorted(hours)


def test_a_flush_waits_while_the_shard_moves_and_is_then_shown_once(
    cluster: RedisCluster, redis: Redis, settings: Settings
) -> None:
    shard, tier = Shard(settings), HotTier(redis, settings.key_prefix, 1)
    shard.show([at(0, 1), at(1, 2)], START)
    span = shard.sink.keys.span
    slot, source = key_slot(span), cluster.owner(span.decode())
    target = cluster.other_primary(source)
    published = shard.flush([at(0, 10), at(2, 4)], START + 2 * MINUTE)
    cluster.begin_move(slot, source, target)
    for moved in ([span], None):
        cluster.move_keys(slot, source, target, moved)
        with pytest.raises(Refused) as refused:
            shard.write(published)
        assert refused.value.code in ("ASK", "TRYAGAIN")
        before = redis.call("HGET", span, "sequence")
    cluster.end_move(slot, source, target)
    shard.write(published)
    assert int(redis.call("HGET", span, "sequence")) == int(before) + 1
    assert minutes(tier) == {(0,): 11, (1,): 2, (2,): 4}


# -- fail-overs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def healed(cluster: RedisCluster) -> Iterator[RedisCluster]:
    """The cluster; nodes that a test has killed or paused are back at its end."""
    yield cluster
    for node in cluster.nodes:
        node.resume()
    for node in cluster.nodes:
        if not node.is_up:
            cluster.restart(node)


def test_ids_that_a_fail_over_lost_are_noticed_by_the_next_write_and_by_the_next_owner(
    healed: RedisCluster, redis: Redis, settings: Settings
) -> None:
    known = Registry(redis, settings.key_prefix, ttl_s=60, segment_ids=1000)
    ids = digest_ids(Values.of([b"id%d" % n for n in range(30)]))
    mirror = known.begin(0, 0)
    known.record(mirror, {7: (ids[:10], np.arange(10))}, up_to=10, oldest_generation=0)

    def record_more() -> None:
        known.record(mirror, {7: (ids[10:20], np.arange(10, 20))}, up_to=20, oldest_generation=0)

    healed.fail_over(healed.owner(redis_key(settings.key_prefix, 0)), while_behind=record_more)
    next_owner = patiently(lambda: known.load(0))
    assert next_owner is not None and next_owner.recorded_up_to == 10, "less than was committed: it rebuilds"
    with pytest.raises(RegistryLost):
        patiently(lambda: known.record(mirror, {7: (ids[20:], np.arange(20, 30))}, up_to=30, oldest_generation=0))
    assert patiently(lambda: known.load(0)).head == next_owner.head  # type: ignore[union-attr]


def test_minutes_that_a_fail_over_lost_are_written_anew(healed: RedisCluster, redis: Redis, settings: Settings) -> None:
    shard, tier = Shard(settings), HotTier(redis, settings.key_prefix, 1)
    shard.show([at(0, 1), at(1, 2)], START + MINUTE)

    def show_more() -> None:
        shard.show([at(0, 10), at(2, 4)], START + 2 * MINUTE)
        shard.show([at(2, 40)], START + 2 * MINUTE)

    healed.fail_over(healed.owner(shard.sink.keys.span.decode()), while_behind=show_more)
    assert patiently(lambda: minutes(tier)) == {(0,): 1, (1,): 2}, "what the replica had"
    patiently(shard.refresh)
    assert minutes(tier) == {(0,): 11, (1,): 2, (2,): 44}
    shard.show([at(2, 400)], START + 3 * MINUTE)
    assert minutes(tier) == {(0,): 11, (1,): 2, (2,): 444}


def test_a_flush_of_which_a_fail_over_lost_the_first_half_is_not_shown_as_whole(
    healed: RedisCluster, redis: Redis, settings: Settings
) -> None:
    shard, tier = Shard(settings), HotTier(redis, settings.key_prefix, 1)
    shard.show([at(0, 1)], START)
    shard.sink.ops_per_call, calls = 1, 0
    primary = healed.owner(shard.sink.keys.span.decode())

    def lose_the_first(call: Callable[[], Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls != 1:
            return call()
        answers = list[Any]()
        healed.fail_over(primary, while_behind=lambda: answers.append(call()))
        # Another thread of the worker has met the new primary meanwhile.
        patiently(lambda: shard.redis.call("EXISTS", shard.sink.keys.span))
        return answers[0]

    shard.redis.around_script = lose_the_first
    shard.show([at(0, 10), at(1, 2), at(2, 4)], START)
    assert calls > 3
    assert minutes(tier) == {(0,): 11, (1,): 2, (2,): 4}


def test_a_write_counts_only_once_enough_replicas_have_it(healed: RedisCluster, settings: Settings) -> None:
    key = f"{settings.key_prefix}head"
    redis = Redis(RedisAccess(settings.redis, wait_replicas=1))
    assert patiently(lambda: redis.write_if(key, lambda _: [("SET", key, "1")]))
    primary = healed.owner(key)
    replica = healed.replica_of(primary)
    replica.pause()
    with pytest.raises(Refused) as refused:
        redis.write_if(key, lambda _: [("SET", key, "2")])
    assert refused.value.code == "WAIT"
    primary.cut_off_replicas()
    with pytest.raises(Refused, match="0 of 1 replicas"):
        redis.write_if(key, lambda _: [("SET", key, "3")])
    assert redis.call("GET", key) == b"2", "what cannot be confirmed is not written again and again"
    replica.resume()
    wait_until(lambda: patiently(lambda: redis.write_if(key, lambda _: [("SET", key, "4")])), 5, "it is confirmed")
    assert healed.fail_over(healed.owner(key)).client.get(key) == b"4"


def test_calls_fail_while_a_primary_is_away_and_succeed_once_its_replica_serves(
    healed: RedisCluster, redis: Redis, settings: Settings
) -> None:
    key, other = f"{settings.key_prefix}a", f"{settings.key_prefix}"
    other = next(k for n in range(99) if healed.owner(k := f"{other}{n}") is not healed.owner(key))
    twice = redis.script("return redis.call('INCR', KEYS[1])")
    assert (twice([key], []), twice([other], [])) == (1, 1)
    name = f"{settings.key_prefix}{{{key}}}lease"
    confirming = Redis(RedisAccess(settings.redis, wait_replicas=1))
    with redis.lease(name, 30, "busy"):
        # The replica has the lease as well: all before a confirmed write is confirmed.
        assert patiently(lambda: confirming.write_if(key, lambda number: [("SET", key, number or b"")]))
        healed.owner(key).kill()
        with pytest.raises(Unavailable):
            twice([key], [])
        assert twice([other], []) == 2, "the other nodes serve"
        assert patiently(lambda: twice([key], [])) == 2
        with pytest.raises(UserError, match="busy"):
            patiently(lambda: redis.lease(name, 30, "busy").__enter__())
