"""Docs/runbooks.md, "Rotating secrets": new ones are let in beside the old ones, processes take them one by one, old ones are withdrawn."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from confluent_kafka.admin import (
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)
from pydantic import SecretStr

from infra import migration
from infra.clickhouse.client import ClickHouse
from infra.errors import AdclickError
from infra.kafka.admin import Admin
from infra.redis.client import Redis
from infra.settings import Settings
from query.keys import Keys
from tests.clusters.certificates import Authority
from tests.clusters.clickhouse_cluster import EVERYTHING, USER, ClickHouseCluster
from tests.clusters.kafka_cluster import KafkaCluster
from tests.clusters.kafka_config import PASSWORDS
from tests.clusters.redis_cluster import RedisNode
from tests.flow import Flow
from tests.ports import unused_port
from tests.product import PATIENCE, wait_until
from tests.recovery.load import counting, under_load

_WORKERS = ("archive-0", "stream-0", "ingest-0", "serve-0", "serve-1", "notify-0")
_NEW_USER = "adclick_2"
# A router answers after so long.
_ROUTER_S = 5.0
_OLD_API_KEY, _NEW_API_KEY = "old-key-of-the-installation-00000001", "new-key-of-the-installation-00000002"
_OLD_TOKENS, _NEW_TOKENS = "old-token-secret-of-32-characters-", "new-token-secret-of-32-characters-"


@dataclass
class Stores:
    """Kafka by TLS and SCRAM, a Redis with users, a ClickHouse with two users; and the file of authorities that clients trust."""

    kafka: KafkaCluster
    redis: RedisNode
    clickhouse: ClickHouseCluster
    trusted: Path

    def settings(self, work: Path) -> Settings:
        """Settings of an installation with the old secrets; topics and tables are made."""
        (work / "archive").mkdir()
        settings = Settings.model_validate(
            {
                "namespace": f"r{uuid.uuid4().hex[:8]}_", "archive": str(work / "archive"), "event_partitions": 3,
                "block_partitions": 2, "kafka": self.kafka.addresses("SASL_SSL"), "kafka_security_protocol": "SASL_SSL",
                "kafka_ca": str(self.trusted), "kafka_user": "alice", "kafka_password": PASSWORDS["alice"],
                "redis": self.redis_url("old"), "clickhouse": self.clickhouse.nodes[0].url(USER), "api_key": _OLD_API_KEY,
                "token_secret": _OLD_TOKENS, "user_secret": "never-rotated", "http": f"http://127.0.0.1:{unused_port()}",
            }
        )  # fmt: skip
        migration.migrate(settings)
        return settings

    def redis_url(self, password: str) -> str:
        return f"redis://adclick:{password}@127.0.0.1:{self.redis.port}/0"

    def alter_scram(self, alteration: Any) -> None:
        """Kafka: what `kafka-configs.sh --entity-type users` does."""
        admin = self.kafka.admin()  # which has to live until the result is there
        for future in admin.alter_user_scram_credentials([alteration]).values():
            future.result(20 * PATIENCE)


@contextmanager
def _stores(work: Path) -> Iterator[Stores]:
    redis = RedisNode(work / "redis", unused_port(), ("--appendonly", "yes", "--save", ""))
    # A user of ClickHouse has one password by its configuration: so the new one is another user's.
    clickhouse = ClickHouseCluster(work / "clickhouse", shards=1, replicas=1, users={_NEW_USER: EVERYTHING})
    with KafkaCluster(work / "kafka") as kafka:
        try:
            redis.start()
            clickhouse.start()
            redis.client.execute_command("ACL", "SETUSER", "adclick", "on", ">old", "~*", "&*", "+@all")
            trusted = work / "trusted.pem"
            trusted.write_bytes(kafka.authority.file.read_bytes())
            yield Stores(kafka, redis, clickhouse, trusted)
        finally:
            clickhouse.close()
            redis.kill()


@dataclass
class Caller:
    """Asks the routers all the time, with a key of the table of keys."""

    http: str
    key: str
    answers: dict[int, int] = field(default_factory=dict)
    refused_connections: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._stop.wait(0.05):
            try:
                status = ask(self.http, self.key)
            except httpx.TransportError:
                self.refused_connections += 1
            else:
                self.answers[status] = self.answers.get(status, 0) + 1

    def stop(self) -> None:
        self._stop.set()


def ask(http: str, secret: str) -> int:
    """The status of an answer to a key or token."""
    return httpx.get(f"{http}/v1/access", headers={"Authorization": f"Bearer {secret}"}, trust_env=False).status_code


def rotation(work: Path) -> float:
    """Every secret that can be rotated, all in one round of restarts, while events come and questions are asked."""
    with _stores(work) as stores:
        old = stores.settings(work)
        with counting(old, work) as running, under_load(running, 90) as producers:
            for name in _WORKERS:
                running.start(name)
            running.wait_until_something_is_shown()
            wait_until(lambda: _answers(old.http, _OLD_API_KEY), 40, "routers answer")
            _, key = Keys(ClickHouse.of(old)).create(
                "caller", None, admin=False, rate=1_000.0, burst=1_000.0, lasts_ms=None
            )
            token = httpx.post(
                f"{old.http}/v1/tokens",
                headers={"Authorization": f"Bearer {key}"},
                json={"expires_in": 3600},
                trust_env=False,
            ).json()["token"]
            caller = Caller(old.http, key)
            asking = threading.Thread(target=caller.run)
            asking.start()
            began = time.monotonic()
            try:
                new, authority = _let_in(stores, old, work)
                _roll(running, new)
                assert (ask(old.http, _OLD_API_KEY), ask(old.http, _NEW_API_KEY), ask(old.http, token)) == (
                    401,
                    200,
                    200,
                )
                producers.stop()
                _withdraw(stores, authority)
                last = new.model_copy(update={"former_token_secret": SecretStr("")})
                _roll(running, last)
                producers.start()
                _check_old_is_refused(stores, old)
                assert (ask(old.http, key), ask(old.http, token)) == (200, 401)
                took_s = time.monotonic() - began
            finally:
                caller.stop()
                asking.join()
            print(f"  answers {caller.answers}, connections refused: {caller.refused_connections}", flush=True)
            assert caller.answers.keys() == {200}
        return took_s


def _let_in(stores: Stores, old: Settings, work: Path) -> tuple[Settings, Authority]:
    """Step 1: each store takes both. Returns the settings with the new secrets, and the authority of the next certificates."""
    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    stores.alter_scram(UserScramCredentialUpsertion(_NEW_USER, info, b"kafka-new"))
    stores.redis.client.execute_command("ACL", "SETUSER", "adclick", ">new")
    authority = Authority(work / "next-tls")
    stores.trusted.write_bytes(stores.kafka.authority.file.read_bytes() + authority.file.read_bytes())
    changes = {
        "kafka_user": _NEW_USER, "kafka_password": SecretStr("kafka-new"), "redis": stores.redis_url("new"),
        "clickhouse": stores.clickhouse.nodes[0].url(_NEW_USER), "api_key": SecretStr(_NEW_API_KEY),
        "token_secret": SecretStr(_NEW_TOKENS), "former_token_secret": SecretStr(_OLD_TOKENS),
    }  # fmt: skip
    return old.model_copy(update=changes), authority


def _roll(running: Flow, settings: Settings) -> None:
    """Step 2: processes are started again one by one, with the new settings."""
    began = time.monotonic()
    running.settings = settings.model_copy(update={"session_timeout_ms": 2_500, "silent_after_ms": 1_500})
    for name in _WORKERS:
        running.stop(name)
        running.start(name)
        if name.startswith("serve"):
            time.sleep(_ROUTER_S)  # the next one is stopped once this one answers
    print(f"  {len(_WORKERS)} processes restarted in {time.monotonic() - began:.1f} s", flush=True)


def _withdraw(stores: Stores, authority: Authority) -> None:
    """Step 3: the broker has a certificate of the next authority, clients trust that one alone, old passwords are gone."""
    stores.kafka.present(authority.issue("localhost"))
    stores.trusted.write_bytes(authority.file.read_bytes())
    stores.alter_scram(UserScramCredentialDeletion("alice", ScramMechanism.SCRAM_SHA_512))
    stores.redis.client.execute_command("ACL", "SETUSER", "adclick", "<old")
    stores.clickhouse.remove_user(USER)


def _check_old_is_refused(stores: Stores, old: Settings) -> None:
    attempts: dict[str, Callable[[], object]] = {
        "Kafka": lambda: Admin(old.kafka_connection, timeout_s=5).partitions(),
        "Redis": lambda: Redis(old.redis_access).call("PING"),
        "ClickHouse": lambda: ClickHouse.of(old).rows("SELECT 1"),
    }
    for store, attempt in attempts.items():
        try:
            attempt()
        except AdclickError as error:
            print(f"  {store}, with the old secret: {str(error)[:110]}", flush=True)
        else:
            raise AssertionError(f"{store} takes the old secret")


def _answers(http: str, key: str) -> bool:
    try:
        return ask(http, key) == 200
    except httpx.TransportError:
        return False
