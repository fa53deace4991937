"""Backends that answer and refuse: no worker dies, the reason is reported, answers go on, and afterwards all is exact."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from redis import Redis as Client
from redis import RedisError
from starlette.testclient import TestClient

from infra.clickhouse.client import ClickHouse
from infra.clock import HOUR_MS, iso, now_ms
from infra.embedded import readiness, start_commands
from infra.errors import BadStatement, Denied, Refused, Unavailable, UserError
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.column_consumer import Starts
from infra.kafka.consumers import GroupConsumer
from infra.redis.client import Redis
from infra.redis.eviction import eviction_risk
from infra.retries import WAITS
from infra.settings import Settings
from ingest.archive.worker import ArchiveWorker
from ingest.worker import IngestWorker
from query.api import app as api
from query.keys import Keys
from query.status import read_status
from query.tiers.clickhouse import StoredTiers, decode_borders
from stream.hot.layout import ShardKeys, SpanField
from tests.clusters.tcp_proxy import Proxy
from tests.flow import STEP, Flow, flow
from tests.ports import unused_port
from tests.product import PATIENCE, assert_stays, wait_until
from tests.refusals import REFUSALS, refusing


@contextmanager
def busy(settings: Settings) -> Iterator[None]:
    """A Redis in which another client's script runs for ever."""
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

        def takes_commands() -> bool:
            # On a starved machine a worker's own script may take more than 50 ms, too.
            with suppress(RedisError):
                return bool(other.execute_command("CONFIG", "SET", "lua-time-limit", "5000"))
            return False

        wait_until(takes_commands, 20, "Redis takes commands")


@pytest.fixture
def http(settings: Settings) -> Iterator[httpx.Client]:
    with TestClient(api.create_app(settings)) as client:
        yield client


def limited_key(settings: Settings) -> dict[str, str]:
    keys = Keys(ClickHouse(settings.clickhouse, settings.database))
    _, token = keys.create("test", None, admin=False, rate=1e6, burst=1e6, lasts_ms=None)
    return {"Authorization": f"Bearer {token}"}


def stored_hours_end_ms(settings: Settings) -> int:
    """The end of the hours that ClickHouse has of all shards; 0 while it has none."""
    client = ClickHouse(settings.clickhouse, settings.database)
    return decode_borders(StoredTiers(client, client, settings.block_partitions).borders()).warm_closed_ms or 0


def alive(running: Flow) -> bool:
    return all(worker.poll() is None for worker in running.workers.values())


def wait_until_named(settings: Settings, http: httpx.Client, backend: str, word: str) -> None:
    """Wait until `status`, `/readyz` and `/metrics` name a backend with its reason."""

    root = {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"}

    # Each asks for itself, and between two attempts of a worker there is a moment in which it does not wait.
    def status_names_it() -> bool:
        return word in str(read_status(settings)["problems"].get(backend, ""))

    def readiness_names_it() -> bool:
        ready = http.get("/readyz")
        return ready.status_code == 503 and any(word in reason for reason in ready.json()["missing"])

    def metrics_name_it() -> bool:
        return f'adclick_backend_up{{backend="{backend}"}} 0.0' in http.get("/metrics", headers=root).text

    wait_until(status_names_it, 20, f"status names {backend} with {word}")
    wait_until(readiness_names_it, 5, f"/readyz names {backend} with {word}")
    wait_until(metrics_name_it, 5, f"/metrics names {backend}")


def test_a_redis_that_refuses_is_waited_out_and_named_while_answers_go_on(
    settings: Settings, http: httpx.Client, tmp_path: Path
) -> None:
    headers = limited_key(settings)
    with flow(settings, tmp_path) as running:
        end = iso(now_ms() + HOUR_MS)
        parameters = dict(running.parameters()) | {"end": end}

        def statuses() -> dict[str, int]:
            return {
                grain: http.get("/v1/metrics", params=parameters | {"granularity": grain}, headers=headers).status_code
                for grain in ("minute", "hour")
            }

        def wait_for_statuses(minute: int, hour: int) -> None:
            # Asks again, as a client does: on a busy machine a store may not answer in time, and then its circuit is open for a while.
            expected = {"minute": minute, "hour": hour}
            wait_until(lambda: statuses() == expected, 20, lambda: f"{expected}, and not {statuses()}")

        for worker in ("ingest-0", "stream-0"):
            running.start(worker)
        running.send(STEP // 2)
        running.wait_until_something_is_shown()
        wait_for_statuses(200, 200)
        # Until an hour is stored there is none to show without Redis, and while that refuses workers store none.
        wait_until(lambda: stored_hours_end_ms(settings) > running.start_ms, 40, "an hour is stored")
        # What starts in the middle of it waits as well.
        with refusing(settings.redis, REFUSALS[0]):
            for name in ("ingest-0", "stream-0"):
                running.workers[name].kill()
                running.workers[name].wait()
                running.start(name)
            wait_until(lambda: (tmp_path / "log").read_text().count("waiting for a backend") > 1, 20, "both wait")
            assert alive(running)
        share = STEP // 4 // (len(REFUSALS) + 1)
        for refusal in REFUSALS:
            with refusing(settings.redis, refusal):
                running.send(share)
                wait_until_named(settings, http, "redis", refusal.code)
                # Minutes are in Redis alone; hours and limits do without it.
                wait_for_statuses(200 if refusal.reads else 503, 200)
                assert alive(running), refusal.code
        with busy(settings):
            running.send(share)
            wait_until_named(settings, http, "redis", "BUSY")
            wait_for_statuses(503, 200)
            assert alive(running)
        Redis(settings.redis).call("SCRIPT", "FLUSH")
        running.send()
        running.wait_until_exact(120)
        wait_until(lambda: not read_status(settings)["problems"], 20, "nothing is amiss any more")
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
                wait_until_named(settings, http, "clickhouse", code)
                assert alive(running), code
            finally:
                client.command(end.format(db=settings.database))
        running.send()
        running.wait_until_exact(120)
        wait_until(lambda: not read_status(settings)["problems"], 20, "nothing is amiss any more")
        assert alive(running)


def test_a_kafka_that_takes_no_records_is_waited_out_and_named(
    settings: Settings, http: httpx.Client, tmp_path: Path
) -> None:
    admin, blocks = Admin(settings.kafka_connection), settings.topic(topics.BLOCKS)
    with flow(settings, tmp_path) as running:
        for worker in ("ingest-0", "stream-0"):
            running.start(worker)
        running.send(STEP // 4)
        running.wait_until_something_is_shown()
        admin.configure({blocks: {"max.message.bytes": "200"}})
        running.send(STEP // 4)
        wait_until_named(settings, http, "kafka", "Message size too large")
        assert_stays(lambda: alive(running), 3, "no worker dies of a refused message")
        admin.configure({blocks: {"max.message.bytes": "4194304"}})
        running.send()
        running.wait_until_exact(120)
        wait_until(lambda: not read_status(settings)["problems"], 20, "nothing is amiss any more")
        assert alive(running)
    # Not for each of its attempts.
    assert 1 <= (tmp_path / "log").read_text().count("transaction aborted") <= 3


def test_an_archive_that_cannot_be_written_is_waited_out_and_named(
    settings: Settings, http: httpx.Client, tmp_path: Path
) -> None:
    (tmp_path / "volume").write_text("a file where a volume is to be mounted")
    unwritable = settings.model_copy(update={"archive": str(tmp_path / "volume" / "archive"), "archive_flush_ms": 200})
    with flow(unwritable, tmp_path) as running:
        for worker in ("ingest-0", "archive-0"):
            running.start(worker)
        running.send(STEP // 2)
        wait_until_named(settings, http, "archive", "Not a directory")
        running.send()
        assert alive(running)
        (tmp_path / "volume").unlink()
        running.wait_until_archived(40)
        assert alive(running)
        wait_until(lambda: "archive" not in read_status(settings)["problems"], 20, "nothing is amiss any more")
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    # The log is shared: what happens to other workers is no concern of this test.
    events = [line["event"] for line in lines if line.get("worker") == "archive-0"]
    assert events.count("starting over") == 1
    assert events.count("works again") == 1


@pytest.mark.parametrize("make", [IngestWorker, ArchiveWorker])
def test_an_idle_worker_reports_no_wait_once_its_backend_is_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, make: type[IngestWorker] | type[ArchiveWorker]
) -> None:
    consume, losses = GroupConsumer.consume, [Unavailable("Kafka: it is away", backend="kafka")]

    def lost_once(consumer: GroupConsumer, *words: Any) -> list[Any]:
        if losses:
            raise losses.pop()
        return consume(consumer, *words)

    monkeypatch.setattr(GroupConsumer, "consume", lost_once)
    # One of a group in which others have all the partitions.
    monkeypatch.setattr(make, "_assigned", lambda *_: Starts({}, "", {}) if make is IngestWorker else {})
    worker = make(settings, "idle-0")
    running = threading.Thread(target=worker.run)
    running.start()
    try:
        wait_until(lambda: "kafka" in WAITS.reasons(), 20, "the loss is noted")
        wait_until(lambda: not WAITS.reasons(), 20, "nothing is waited for")
    finally:
        worker.stop()
        running.join()


def test_wrong_credentials_are_reported_in_one_line(settings: Settings) -> None:
    wrong = settings.clickhouse.replace("adclick:", "adclick:not-")
    with pytest.raises(Denied, match=r"AUTHENTICATION_FAILED.*ADCLICK_CLICKHOUSE"):
        ClickHouse(wrong, settings.database).rows("SELECT 1")
    with pytest.raises(Denied, match="ADCLICK_REDIS"):
        Redis(settings.redis.replace("redis://", "redis://nobody:wrong@")).call("PING")


@pytest.fixture
def policy(settings: Settings) -> Iterator[Callable[[str], None]]:
    client = Client.from_url(settings.redis)

    def change(name: str) -> None:
        client.config_set("maxmemory-policy", name)

    yield change
    change("noeviction")


@pytest.mark.parametrize("name", ["allkeys-lru", "volatile-ttl"])
def test_no_worker_starts_on_a_redis_that_may_evict(
    settings: Settings, policy: Callable[[str], None], tmp_path: Path, name: str
) -> None:
    policy(name)
    with pytest.raises(UserError, match=rf"{name}.*noeviction"):
        IngestWorker(settings, "ingest-0").run()
    assert name in read_status(settings)["problems"]["redis"]
    with flow(settings, tmp_path) as running:
        for worker in [running.start(name) for name in ("ingest-0", "stream-0")]:
            assert worker.wait(40 * PATIENCE) == 1
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("adclick: Redis may evict") and "CONFIG SET" in line for line in lines)


def test_the_policy_is_read_from_info_where_config_is_forbidden(
    settings: Settings, policy: Callable[[str], None]
) -> None:
    client: Any = Client.from_url(settings.redis, single_connection_client=True)
    policy("allkeys-lfu")
    try:
        # As managed services have it.
        client.execute_command("ACL", "SETUSER", "default", "-config")
        assert "allkeys-lfu" in eviction_risk(Redis(settings.redis))
        client.execute_command("ACL", "SETUSER", "default", "+config", "-info")
        assert "allkeys-lfu" in eviction_risk(Redis(settings.redis))
        client.execute_command("ACL", "SETUSER", "default", "-config", "-info")
        assert eviction_risk(Redis(settings.redis)) == ""
    finally:
        client.execute_command("ACL", "SETUSER", "default", "+@all")


def test_an_evicting_policy_set_at_run_time_stops_ingest_until_evicted_keys_are_rebuilt(
    settings: Settings, http: httpx.Client, policy: Callable[[str], None], tmp_path: Path
) -> None:
    client = Client.from_url(settings.redis)
    with flow(settings, tmp_path) as running:
        for worker in ("ingest-0", "stream-0"):
            running.start(worker)
        # Less than an hour of events: the state still has all minutes.
        running.send(STEP // 4)
        running.wait_until_something_is_shown()
        policy("allkeys-random")
        wait_until_named(settings, http, "redis", "allkeys-random")
        wait_until(lambda: "starting over" in (tmp_path / "log").read_text(), 20, "ingest stops")
        # Some of what is there goes.
        client.config_set("maxmemory", max(1, client.info("memory")["used_memory"] - (64 << 10)))
        before = client.info("stats")["evicted_keys"]
        wait_until(
            lambda: client.set("x", "y") and client.info("stats")["evicted_keys"] > before, 20, "keys are evicted"
        )
        client.config_set("maxmemory", 0)
        policy("noeviction")
        evicted = client.info("stats")["evicted_keys"]
        spans = [ShardKeys.of(settings.key_prefix, shard).span for shard in range(settings.block_partitions)]

        def is_known_to_be_whole(span: bytes) -> bool:
            mark: Any
            mark, sequence = client.hmget(span, [SpanField.EVICTED, SpanField.SEQUENCE])
            return sequence is not None and mark is not None and mark.endswith(b":%d" % evicted)

        # Later the state drops old minutes: those are lost where Redis has evicted them.
        wait_until(lambda: all(map(is_known_to_be_whole, spans)), 20, "minutes are written anew")
        running.send()
        running.wait_until_exact(120)
        assert alive(running)


@contextmanager
def another_redis(folder: Path) -> Iterator[str]:
    """The address of a Redis of its own."""
    port = unused_port()
    url = f"redis://127.0.0.1:{port}/0"
    command = start_commands.redis(folder, port)
    with subprocess.Popen(command.argv, cwd=command.cwd, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: readiness.redis_ready(url), 20, "Redis answers")
            yield url
        finally:
            process.kill()


def test_after_a_failover_writes_reach_the_new_primary_where_the_old_one_lives_on(tmp_path: Path) -> None:
    # As reported of clients that keep their connections to what is a replica now (redis-py #460, and many since).
    with (
        another_redis(tmp_path / "former") as former,
        another_redis(tmp_path / "primary") as primary,
        Proxy(former) as network,
    ):
        address = urlsplit(primary)
        redis = Redis(network.url)
        write = redis.script("return redis.call('SET', KEYS[1], ARGV[1])")
        redis.write_if("a", lambda _: [("SET", "a", "before")])
        write(["a"], ["before"])
        Redis(former).call("REPLICAOF", address.hostname, address.port)
        network.lead_to(primary)
        with pytest.raises(Refused, match="READONLY"):
            write(["a"], ["after"])
        write(["a"], ["after"])
        assert redis.write_if("a", lambda value: [("SET", "a", value + b" all")] if value else None)
        assert Redis(primary).call("GET", "a") == b"after all"


def test_refusals_carry_the_backends_own_code(settings: Settings) -> None:
    oom = REFUSALS[0]
    with refusing(settings.redis, oom), pytest.raises(Refused) as refused:
        Redis(settings.redis).script("return redis.call('SET', KEYS[1], 'x')")([f"{settings.key_prefix}x"], [])
    assert (refused.value.code, refused.value.backend) == ("OOM", "redis")


def test_an_answer_is_complete_where_clickhouse_can_write_no_file(settings: Settings, backends: Path) -> None:
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
def test_a_truncated_reply_of_clickhouse_is_an_error(settings: Settings, read: Any) -> None:
    fails_late = (
        "SELECT throwIf(number = 2000000), toString(number) FROM numbers(3000000) SETTINGS max_block_size = 10000"
    )
    with pytest.raises((BadStatement, Unavailable)):
        read(ClickHouse(settings.clickhouse, settings.database), fails_late)
