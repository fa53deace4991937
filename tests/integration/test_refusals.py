"""Backends that answer and refuse: nobody dies, everybody says why, answers go on, and afterwards all is exact."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from redis import Redis as Client
from redis import RedisError
from starlette.testclient import TestClient

from infra import pipeline_state, topics
from infra.clickhouse.client import ClickHouse
from infra.clock import HOUR_MS, iso, now_ms
from infra.embedded import servers
from infra.errors import BadStatement, Denied, Refused, Unavailable, UserError
from infra.kafka import Admin
from infra.redis import Redis
from infra.settings import Settings
from ingest.worker import IngestWorker
from query.api import app as api
from query.keys import Keys
from tests.flow import STEP, Flow, flow
from tests.product import wait_until
from tests.refusals import REFUSALS, refusing
from tests.relay import Relay


@contextmanager
def busy(settings: Settings) -> Iterator[None]:
    """A Redis in which a script of somebody runs for ever."""
    script: Any = Client.from_url(settings.redis)
    other: Any = Client.from_url(settings.redis)
    other.execute_command("CONFIG", "SET", "lua-time-limit", "50")

    def run() -> None:
        with pytest.raises(RedisError):
            script.execute_command("EVAL", "while true do end", 0)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        other.execute_command("SCRIPT", "KILL")
        thread.join()
        other.execute_command("CONFIG", "SET", "lua-time-limit", "5000")


@pytest.fixture
def http(settings: Settings) -> Iterator[httpx.Client]:
    with TestClient(api.create(settings)) as client:
        yield client


def limited_key(settings: Settings) -> dict[str, str]:
    keys = Keys(ClickHouse(settings.clickhouse, settings.database))
    _, token = keys.create("test", None, admin=False, rate=1e6, burst=1e6, lasts_ms=None)
    return {"Authorization": f"Bearer {token}"}


def alive(running: Flow) -> bool:
    return all(worker.poll() is None for worker in running.workers.values())


def named(settings: Settings, http: httpx.Client, backend: str, word: str) -> None:
    """Wait until `status`, `/readyz` and `/metrics` name a backend with its reason."""

    def problem() -> str:
        return str(pipeline_state.collect(settings)["problems"].get(backend, ""))

    wait_until(lambda: word in problem(), 20, f"status names {backend} with {word}")
    ready = http.get("/readyz")
    assert ready.status_code == 503
    assert any(word in reason for reason in ready.json()["missing"]), ready.json()
    root = {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"}
    assert f'adclick_backend_up{{backend="{backend}"}} 0.0' in http.get("/metrics", headers=root).text


def test_a_redis_that_refuses_is_waited_out_and_named_while_answers_go_on(
    settings: Settings, http: httpx.Client, tmp_path: Path
) -> None:
    headers = limited_key(settings)
    with flow(settings, tmp_path) as running:
        end = iso(now_ms() + HOUR_MS)
        everyone = dict(running.asked()) | {"end": end}

        def statuses() -> dict[str, int]:
            return {
                grain: http.get("/v1/metrics", params=everyone | {"granularity": grain}, headers=headers).status_code
                for grain in ("minute", "hour")
            }

        for worker in ("ingest-0", "stream-0"):
            running.start(worker)
        running.send(STEP // 4)
        running.true_in_part()
        wait_until(lambda: statuses() == {"minute": 200, "hour": 200}, 20, "answers")
        # What starts in the middle of it waits as well.
        with refusing(settings.redis, REFUSALS[0]):
            for name in ("ingest-0", "stream-0"):
                running.workers[name].kill()
                running.workers[name].wait()
                running.start(name)
            wait_until(lambda: (tmp_path / "log").read_text().count("waiting for a backend") > 1, 20, "both wait")
            assert alive(running)
        share = STEP // 2 // (len(REFUSALS) + 1)
        for refusal in REFUSALS:
            with refusing(settings.redis, refusal):
                running.send(share)
                named(settings, http, "redis", refusal.code)
                # Minutes are in Redis alone; hours and limits do without it.
                assert statuses()["hour"] == 200, refusal.code
                assert statuses()["minute"] == (200 if refusal.reads else 503), refusal.code
                assert alive(running), refusal.code
        with busy(settings):
            running.send(share)
            named(settings, http, "redis", "BUSY")
            assert statuses()["hour"] == 200
            assert alive(running)
        Redis(settings.redis).call("SCRIPT", "FLUSH")
        running.send()
        running.true_within(120)
        wait_until(lambda: not pipeline_state.collect(settings)["problems"], 20, "nothing is amiss any more")
        wait_until(lambda: http.get("/readyz").status_code == 200, 20, "ready")
        assert alive(running)
    assert (tmp_path / "log").read_bytes().count(b"\n") < 200


CLICKHOUSE = [
    ("UNKNOWN_TABLE", "RENAME TABLE {db}.stream_hours TO {db}.away", "RENAME TABLE {db}.away TO {db}.stream_hours"),
    (
        "TOO_MANY_PARTS",
        "ALTER TABLE {db}.stream_hours MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1000",
        "ALTER TABLE {db}.stream_hours RESET SETTING parts_to_throw_insert, parts_to_delay_insert",
    ),
]


def test_a_clickhouse_that_refuses_is_waited_out_and_named(
    settings: Settings, http: httpx.Client, tmp_path: Path
) -> None:
    client = ClickHouse(settings.clickhouse, settings.database)
    with flow(settings, tmp_path) as running:
        for worker in ("ingest-0", "stream-0"):
            running.start(worker)
        running.send(STEP // 4)
        rows = f"SELECT count() FROM {settings.database}.stream_hours"
        wait_until(lambda: client.rows(rows)[0][0] > 0, 40, "an hour is stored")
        for code, begin, end in CLICKHOUSE:
            client.command(begin.format(db=settings.database))
            try:
                running.send(STEP // 4)
                named(settings, http, "clickhouse", code)
                assert alive(running), code
            finally:
                client.command(end.format(db=settings.database))
        running.send()
        running.true_within(120)
        wait_until(lambda: not pipeline_state.collect(settings)["problems"], 20, "nothing is amiss any more")
        assert alive(running)


def test_a_kafka_that_takes_no_records_is_waited_out_and_named(
    settings: Settings, http: httpx.Client, tmp_path: Path
) -> None:
    admin, blocks = Admin(settings.kafka), settings.topic(topics.BLOCKS)
    with flow(settings, tmp_path) as running:
        for worker in ("ingest-0", "stream-0"):
            running.start(worker)
        running.send(STEP // 4)
        running.true_in_part()
        admin.configure({blocks: {"max.message.bytes": "200"}})
        running.send(STEP // 4)
        named(settings, http, "kafka", "Message size too large")
        time.sleep(3)
        assert alive(running)
        admin.configure({blocks: {"max.message.bytes": "4194304"}})
        running.send()
        running.true_within(120)
        wait_until(lambda: not pipeline_state.collect(settings)["problems"], 20, "nothing is amiss any more")
        assert alive(running)
    assert (tmp_path / "log").read_text().count("transaction aborted") == 1


def test_an_archive_that_cannot_be_written_is_waited_out_and_named(
    settings: Settings, http: httpx.Client, tmp_path: Path
) -> None:
    (tmp_path / "volume").write_text("a file where a volume is to be mounted")
    there = settings.model_copy(update={"archive": str(tmp_path / "volume" / "archive"), "archive_flush_ms": 200})
    with flow(there, tmp_path) as running:
        for worker in ("ingest-0", "archive-0"):
            running.start(worker)
        running.send(STEP // 2)
        named(settings, http, "archive", "Not a directory")
        running.send()
        assert alive(running)
        (tmp_path / "volume").unlink()
        running.archived_within(40)
        assert alive(running)
        wait_until(
            lambda: "archive" not in pipeline_state.collect(settings)["problems"], 20, "nothing is amiss any more"
        )
    lines = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert lines.count("starting over") == 1
    assert lines.count("works again") == 1


def test_wrong_credentials_are_said_in_one_line(settings: Settings) -> None:
    wrong = settings.clickhouse.replace("adclick:", "adclick:not-")
    with pytest.raises(Denied, match=r"AUTHENTICATION_FAILED.*ADCLICK_CLICKHOUSE"):
        ClickHouse(wrong, settings.database).rows("SELECT 1")
    with pytest.raises(Denied, match="ADCLICK_REDIS"):
        Redis(settings.redis.replace("redis://", "redis://nobody:wrong@")).call("PING")


def test_a_command_that_fails_inside_a_transaction_is_not_taken_for_done(settings: Settings) -> None:
    redis, key = Redis(settings.redis), f"{settings.key_prefix}a"
    redis.call("RPUSH", f"{key}:list", "x")
    # Redis checks types as it executes: EXEC itself succeeds, and one of its replies is an error.
    with pytest.raises(Exception, match="WRONGTYPE"):
        redis.write_if(key, lambda _: [("SET", key, "1"), ("HSET", f"{key}:list", "f", "v")])


@pytest.fixture
def policy(settings: Settings) -> Iterator[Callable[[str], None]]:
    client = Client.from_url(settings.redis)

    def change(name: str) -> None:
        client.config_set("maxmemory-policy", name)

    yield change
    change("noeviction")


@pytest.mark.parametrize("name", ["allkeys-lru", "volatile-ttl"])
def test_where_redis_may_evict_no_worker_starts(
    settings: Settings, policy: Callable[[str], None], tmp_path: Path, name: str
) -> None:
    policy(name)
    with pytest.raises(UserError, match=rf"{name}.*noeviction"):
        IngestWorker(settings, "ingest-0").run()
    assert name in pipeline_state.collect(settings)["problems"]["redis"]
    with flow(settings, tmp_path) as running:
        for worker in [running.start(name) for name in ("ingest-0", "stream-0")]:
            assert worker.wait(120) == 1
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("adclick: Redis may evict") and "CONFIG SET" in line for line in lines)


def test_where_the_policy_may_not_be_asked_for_memory_says_it(
    settings: Settings, policy: Callable[[str], None]
) -> None:
    client: Any = Client.from_url(settings.redis, single_connection_client=True)
    policy("allkeys-lfu")
    try:
        # As managed services have it.
        client.execute_command("ACL", "SETUSER", "default", "-config")
        assert "allkeys-lfu" in Redis(settings.redis).eviction()
        client.execute_command("ACL", "SETUSER", "default", "+config", "-info")
        assert "allkeys-lfu" in Redis(settings.redis).eviction()
        client.execute_command("ACL", "SETUSER", "default", "-config", "-info")
        assert Redis(settings.redis).eviction() == ""
    finally:
        client.execute_command("ACL", "SETUSER", "default", "+@all")


def test_a_policy_that_is_changed_at_run_time_holds_ingest_up_and_what_was_evicted_is_known_again(
    settings: Settings, http: httpx.Client, policy: Callable[[str], None], tmp_path: Path
) -> None:
    client = Client.from_url(settings.redis)
    with flow(settings, tmp_path) as running:
        for worker in ("ingest-0", "stream-0"):
            running.start(worker)
        running.send(STEP // 2)
        running.true_in_part()
        policy("allkeys-random")
        named(settings, http, "redis", "allkeys-random")
        wait_until(lambda: "starting over" in (tmp_path / "log").read_text(), 20, "ingest stops")
        # Some of what is there goes.
        client.config_set("maxmemory", max(1, client.info("memory")["used_memory"] - (64 << 10)))
        before = client.info("stats")["evicted_keys"]
        wait_until(
            lambda: client.set("x", "y") and client.info("stats")["evicted_keys"] > before, 20, "keys are evicted"
        )
        client.config_set("maxmemory", 0)
        policy("noeviction")
        running.send()
        running.true_within(120)
        assert alive(running)


@contextmanager
def a_redis(folder: Path) -> Iterator[str]:
    """The address of a Redis of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"redis://127.0.0.1:{port}/0"
    command = servers.redis(folder, port)
    with subprocess.Popen(command.argv, cwd=command.cwd, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: servers.redis_ready(url), 20, "Redis answers")
            yield url
        finally:
            process.kill()


def test_after_a_failover_writes_reach_the_new_primary_where_the_old_one_lives_on(tmp_path: Path) -> None:
    # As reported of clients that keep their connections to what is a replica now (redis-py #460, and many since).
    with a_redis(tmp_path / "former") as former, a_redis(tmp_path / "primary") as primary:
        relay, address = Relay(former), urlsplit(primary)
        redis = Redis(relay.url)
        write = redis.script("return redis.call('SET', KEYS[1], ARGV[1])")
        redis.write_if("a", lambda _: [("SET", "a", "before")])
        write(["a"], ["before"])
        Redis(former).call("REPLICAOF", address.hostname, address.port)
        relay.backend = address
        with pytest.raises(Refused, match="READONLY"):
            write(["a"], ["after"])
        write(["a"], ["after"])
        assert redis.write_if("a", lambda value: [("SET", "a", value + b" all")] if value else None)
        assert Redis(primary).call("GET", "a") == b"after all"
        relay.shutdown()


def test_refusals_carry_the_backends_own_code(settings: Settings) -> None:
    oom = REFUSALS[0]
    with refusing(settings.redis, oom), pytest.raises(Refused) as refused:
        Redis(settings.redis).script("return redis.call('SET', KEYS[1], 'x')")([f"{settings.key_prefix}x"], [])
    assert (refused.value.code, refused.value.backend) == ("OOM", "redis")


def test_an_answer_is_whole_where_clickhouse_can_write_no_file(settings: Settings, backends: Path) -> None:
    client = ClickHouse(settings.clickhouse, settings.database)
    question = "SELECT toString(number) AS n FROM numbers(300000)"
    digest = client.sha256(question)
    scratch = backends / "clickhouse" / "data" / "tmp"
    scratch.rename(scratch.with_name("tmp-away"))
    try:
        scratch.touch()  # in place of the folder: nothing can be written below it
        assert client.rows("SELECT count(), sum(number) FROM numbers(10)") == [(10, 45)]
        assert len(client.rows(question)) == 300_000
        assert client.arrow(question).num_rows == 300_000
        assert client.sha256(question) == digest
    finally:
        scratch.unlink()
        scratch.with_name("tmp-away").rename(scratch)


@pytest.mark.parametrize("read", [ClickHouse.rows, ClickHouse.arrow, ClickHouse.sha256])
def test_an_answer_that_breaks_off_is_an_error_and_not_a_shorter_answer(settings: Settings, read: Any) -> None:
    fails_late = (
        "SELECT throwIf(number = 2000000), toString(number) FROM numbers(3000000) SETTINGS max_block_size = 10000"
    )
    with pytest.raises((BadStatement, Unavailable)):
        read(ClickHouse(settings.clickhouse, settings.database), fails_late)
