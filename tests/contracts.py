"""Suites that an adapter and its stand-in both pass: run over the stand-in in `tests/unit`, over the real one in `tests/integration`.

A suite is a class of tests without the prefix `Test`; a subclass that has it provides the fixtures with the implementation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra.clock import now_ms
from infra.columnar.columns import Values
from infra.errors import BadStatement, Unavailable
from infra.file_store import FileStore
from infra.redis.client import Redis
from infra.redis.eviction import eviction_risk
from ingest.dedup.digest import digest_ids
from ingest.dedup.mirror import SegmentCounts
from ingest.dedup.registry import Registry, RegistryLost, all_keys
from query.tier_cache import UNLOCK
from tests.product import wait_until


class RedisContract:
    """What dedup, the cache of tiers and the check of evictions need of a Redis."""

    @pytest.fixture
    def redis(self) -> Redis:
        """The Redis, without a key that begins with `prefix`."""
        raise NotImplementedError

    @pytest.fixture
    def redis_away(self) -> Redis:
        """A Redis that is away."""
        raise NotImplementedError

    @pytest.fixture
    def prefix(self) -> str:
        """The prefix of all keys of the test."""
        raise NotImplementedError

    def test_a_value_is_read_in_whole_and_in_part_until_it_is_removed(self, redis: Redis, prefix: str) -> None:
        key = f"{prefix}key"
        assert (redis.call("GET", key), redis.call("STRLEN", key)) == (None, 0)
        assert redis.call("SET", key, b"\x00abcdef")
        assert (redis.call("GET", key), redis.call("STRLEN", key)) == (b"\x00abcdef", 7)
        assert redis.ranges([(key, 1, 2), (key, 5, 100), (f"{prefix}none", 0, 3)]) == [b"ab", b"ef", b""]
        assert redis.call("SET", key, 12)
        assert redis.call("GET", key) == b"12"
        assert redis.call("UNLINK", key, f"{prefix}none") == 1
        assert redis.call("GET", key) is None

    def test_rows_of_a_list_are_read_in_the_order_they_were_added(self, redis: Redis, prefix: str) -> None:
        key = f"{prefix}list"
        assert redis.call("LRANGE", key, 0, 9) == []
        assert redis.call("RPUSH", key, b"a") == 1
        assert redis.call("RPUSH", key, b"b", b"c") == 3
        assert redis.call("LRANGE", key, 1, 9) == [b"b", b"c"]
        assert redis.call("LRANGE", key, 0, 0) == [b"a"]

    def test_a_command_for_another_kind_of_value_is_refused(self, redis: Redis, prefix: str) -> None:
        redis.call("SET", f"{prefix}key", "x")
        redis.call("RPUSH", f"{prefix}list", "x")
        for command in (("RPUSH", f"{prefix}key", "y"), ("GET", f"{prefix}list"), ("STRLEN", f"{prefix}list")):
            with pytest.raises(BadStatement, match="WRONGTYPE"):
                redis.call(*command)

    def test_set_nx_does_not_replace_a_value(self, redis: Redis, prefix: str) -> None:
        key = f"{prefix}lock"
        assert redis.call("SET", key, "one", "NX", "PX", 60_000)
        assert not redis.call("SET", key, "two", "NX", "PX", 60_000)
        assert redis.call("GET", key) == b"one"

    def test_a_lock_is_removed_by_its_owner_only(self, redis: Redis, prefix: str) -> None:
        key = f"{prefix}lock"
        redis.call("SET", key, "one", "NX", "PX", 60_000)
        redis.call("EVAL", UNLOCK, 1, key, "two")
        assert redis.call("GET", key) == b"one"
        redis.call("EVAL", UNLOCK, 1, key, "one")
        assert redis.call("GET", key) is None

    def test_a_key_expires(self, redis: Redis, prefix: str) -> None:
        key = f"{prefix}key"
        assert redis.call("PTTL", key) == -2
        redis.call("SET", key, "x")
        assert redis.call("PTTL", key) == -1
        assert redis.call("EXPIRE", key, 60)
        assert 50_000 < redis.call("PTTL", key) <= 60_000
        redis.call("SET", key, "y", "EX", 100)
        assert 90_000 < redis.call("PTTL", key) <= 100_000
        redis.call("SET", key, "z")
        assert redis.call("PTTL", key) == -1
        assert not redis.call("EXPIRE", f"{prefix}none", 60)
        redis.call("RPUSH", f"{prefix}list", "a")
        redis.call("EXPIRE", f"{prefix}list", 60)
        redis.call("RPUSH", f"{prefix}list", "b")
        assert 50_000 < redis.call("PTTL", f"{prefix}list") <= 60_000
        redis.call("SET", key, "x", "PX", 20)
        wait_until(lambda: redis.call("GET", key) is None, 5, "the key expires")
        assert redis.call("SET", key, "x", "NX")

    def test_keys_are_scanned_by_their_prefix(self, redis: Redis, prefix: str) -> None:
        keys = [f"{prefix}dedup:{{p{p}}}:{part}" for p in (1, 12) for part in ("head", "7:open")]
        for key in keys:
            redis.call("SET", key, "x")
        assert sorted(redis.scan_keys(f"{prefix}dedup:*")) == sorted(key.encode() for key in keys)
        assert sorted(redis.scan_keys(f"{prefix}dedup:{{p1}}:*")) == sorted(key.encode() for key in keys[:2])
        assert redis.scan_keys(f"{prefix}other:*") == []

    def test_replies_come_in_the_order_of_their_commands(self, redis: Redis, prefix: str) -> None:
        commands = [("SET", f"{prefix}a", "1"), ("RPUSH", f"{prefix}b", "2"), ("GET", f"{prefix}a")]
        assert redis.pipeline(commands)[1:] == [1, b"1"]
        assert redis.pipeline([]) == []
        with pytest.raises(BadStatement, match="WRONGTYPE"):
            redis.pipeline([("GET", f"{prefix}a"), ("GET", f"{prefix}b")])
        assert redis.pipeline([("GET", f"{prefix}a")]) == [b"1"], "a reply of the pipeline that failed"

    def test_a_conditional_write_happens_only_while_its_key_is_unchanged(self, redis: Redis, prefix: str) -> None:
        key, other = f"{prefix}head", f"{prefix}other"
        values_seen: list[bytes | None] = []

        def accept(value: bytes | None) -> Sequence[tuple[Any, ...]]:
            values_seen.append(value)
            return [("SET", key, b"next"), ("RPUSH", other, "row")]

        assert redis.write_if(key, accept)
        assert redis.write_if(key, accept)
        assert values_seen == [None, b"next"]
        assert not redis.write_if(key, lambda _: None)
        assert redis.call("LRANGE", other, 0, 9) == [b"row", b"row"]

        def overtaken(value: bytes | None) -> Sequence[tuple[Any, ...]]:
            redis.call("SET", key, value)  # the same value, and yet a write
            return accept(value)

        with pytest.raises(Unavailable, match="changed by another writer"):
            redis.write_if(key, overtaken)
        assert redis.call("LRANGE", other, 0, 9) == [b"row", b"row"]
        assert redis.write_if(key, accept)

    def test_a_command_that_fails_inside_a_transaction_is_not_taken_for_done(self, redis: Redis, prefix: str) -> None:
        redis.call("RPUSH", f"{prefix}list", "x")
        # Redis checks types as it executes: EXEC itself succeeds, and one of its replies is an error.
        commands = [("RPUSH", f"{prefix}key", "1"), ("STRLEN", f"{prefix}list"), ("RPUSH", f"{prefix}key", "2")]
        with pytest.raises(BadStatement, match="WRONGTYPE"):
            redis.write_if(f"{prefix}head", lambda _: commands)
        assert redis.call("LRANGE", f"{prefix}key", 0, 9) == [b"1", b"2"]

    def test_the_eviction_policy_is_in_info_and_in_config(self, redis: Redis) -> None:
        memories = redis.memories()
        assert memories and all(memory.run_id for memory in memories)
        assert {(memory.policy, memory.evicted_keys) for memory in memories} == {("noeviction", 0)}
        assert redis.pipeline([("CONFIG", "GET", "maxmemory-policy")]) == [[b"maxmemory-policy", b"noeviction"]]
        assert eviction_risk(redis) == ""

    def test_every_command_to_a_redis_that_is_away_raises_unavailable(self, redis_away: Redis, prefix: str) -> None:
        for request in (
            lambda: redis_away.call("GET", prefix),
            lambda: redis_away.ranges([(prefix, 0, 1)]),
            lambda: redis_away.scan_keys(f"{prefix}*"),
            lambda: redis_away.write_if(prefix, lambda _: []),
        ):
            with pytest.raises(Unavailable):
                request()

    def test_ids_that_were_recorded_are_looked_up_by_generation_and_loaded_by_the_next_owner(
        self, redis: Redis, prefix: str
    ) -> None:
        registry = Registry(redis, prefix, ttl_s=60, segment_ids=20_000)
        assert registry.load(0) is None
        memory, first = registry.begin(0, 0), digest_ids(Values.of([b"id%d" % n for n in range(45_000)]))
        other = digest_ids(Values.of([b"other"]))
        for start in range(0, 45_000, 15_000):
            news = {7: (first[start : start + 15_000], np.arange(start, start + 15_000))}
            registry.record(memory, news, up_to=start + 15_000, oldest_generation=0)
        assert memory.head.generations == {7: SegmentCounts(closed=1, open=15_000)}
        registry.record(memory, {8: (other, np.array([2**40]))}, up_to=45_001, oldest_generation=0)
        assert memory.head.generations == {7: SegmentCounts(closed=2), 8: SegmentCounts(open=1)}
        loaded = registry.load(0)
        assert loaded is not None
        for owner in (memory, loaded):
            assert owner.recorded_up_to == 45_001
            assert registry.lookup(owner, 7, first[::100])[0].tolist() == list(range(0, 45_000, 100))
            both = np.concatenate((first[:1], other))
            assert registry.lookup(owner, 8, both)[0].tolist() == [-1, 2**40]
            assert registry.lookup(owner, 7, both)[0].tolist() == [0, -1]
            assert registry.lookup(owner, 7, first[:0])[0].tolist() == []
        assert registry.load(1) is None
        registry.record(memory, {}, up_to=45_002, oldest_generation=8)
        assert registry.lookup(memory, 7, first[:2])[0].tolist() == [-1, -1]
        assert len(redis.scan_keys(all_keys(prefix))) == 2, "the head, and what is open"
        with pytest.raises(Unavailable, match="another worker recorded"):
            registry.record(loaded, {}, up_to=50_000, oldest_generation=0)
        assert loaded.head == memory.head
        registry.begin(0, 5)
        with pytest.raises(RegistryLost):
            registry.record(memory, {}, up_to=50_000, oldest_generation=0)


class FileStoreContract:
    """What the archive needs of a store of files: a folder or a bucket."""

    @pytest.fixture
    def store(self) -> FileStore:
        """A store without files."""
        raise NotImplementedError

    @pytest.fixture
    def unusable(self) -> FileStore:
        """A store that cannot be written."""
        raise NotImplementedError

    def test_a_tree_without_files_is_empty(self, store: FileStore) -> None:
        assert (store.folders(), store.files(), store.files("day=1")) == ([], [], [])

    def test_a_written_file_is_listed_and_read_from_any_offset(self, store: FileStore) -> None:
        content, before = bytes(range(256)) * 100, now_ms()
        store.write("day=1/hour=02/p0.parquet", pa.py_buffer(content))
        (file,) = store.files()
        assert (file.name, file.bytes) == ("day=1/hour=02/p0.parquet", len(content))
        assert before - 1_000 <= file.modified_ms <= now_ms() + 1_000  # a bucket has seconds only
        with store.open(file.name) as source:
            assert source.size() == len(content)
            assert source.read_at(4, 20_001) == content[20_001:20_005]
            source.seek(0)
            assert source.read() == content
        assert store.sha256(file.name) == hashlib.sha256(content).hexdigest()

    def test_a_file_is_replaced_by_the_next_of_its_name(self, store: FileStore) -> None:
        for content in (b"a longer one", b"short"):
            store.write("day=1/p0", pa.py_buffer(content))
            with store.open("day=1/p0") as source:
                assert source.read() == content
        assert [file.bytes for file in store.files()] == [5]

    def test_files_and_folders_are_listed_in_the_order_of_their_names(self, store: FileStore) -> None:
        names = ["day=2/a", "day=10/hour=01/b", "day=10/hour=01/a", "day=10/c", "e"]
        for name in names:
            store.write(name, pa.py_buffer(b"x"))
        assert store.folders() == ["day=10", "day=2"]
        assert [file.name for file in store.files()] == sorted(names)
        assert [file.name for file in store.files("day=10")] == ["day=10/c", "day=10/hour=01/a", "day=10/hour=01/b"]
        assert [file.name for file in store.files("day=10/hour=01")] == ["day=10/hour=01/a", "day=10/hour=01/b"]
        assert store.files("day=1") == [], "a folder is more than a beginning of names"

    def test_removing_a_file_removes_no_other(self, store: FileStore) -> None:
        for name in ("day=1/a", "day=1/b", "day=2/hour=01/a", "day=2/b"):
            store.write(name, pa.py_buffer(b"x"))
        for _ in range(2):
            store.remove("day=1/a")
            assert [file.name for file in store.files()] == ["day=1/b", "day=2/b", "day=2/hour=01/a"]
        store.remove_folder("day=2")
        assert ([file.name for file in store.files()], store.folders()) == (["day=1/b"], ["day=1"])

    def test_a_file_that_is_not_there_is_not_found(self, store: FileStore) -> None:
        for read in (store.open, store.sha256):
            with pytest.raises(FileNotFoundError):
                read("day=1/none")

    def test_a_tree_that_takes_no_files_is_unavailable(self, unusable: FileStore) -> None:
        with pytest.raises(Unavailable, match="cannot be used") as refusal:
            unusable.write("day=1/a", pa.py_buffer(b"x"))
        assert refusal.value.backend == "archive"
        with pytest.raises(Unavailable, match="cannot be used"):
            unusable.check_writable(".probe")

    def test_checking_that_a_tree_takes_files_leaves_none(self, store: FileStore) -> None:
        store.check_writable(".probe")
        assert store.files() == []
