"""Tries each connection and right that an installation needs, and says in a line each what is missing.

A check that fails does not end the others; those that need it are left out. Nothing is changed: what is written is removed again.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from infra import migration
from infra.clickhouse.client import ClickHouse
from infra.errors import AdclickError, UserError
from infra.file_store import FileStore
from infra.kafka import topic_setup, topics
from infra.kafka.admin import Admin
from infra.kafka.sasl import Connector
from infra.kafka.transactions import TransactionalProducer
from infra.redis.client import Redis
from infra.redis.eviction import NEVER_EVICT, eviction_risk
from infra.settings import Settings

_TIMEOUT_S = 5.0
# Verdicts on events with CreateTime bear ten minutes; leases, and what is silent, far less.
_MOST_SKEW_S = 5.0
_TOPIC_RIGHTS = ("DESCRIBE", "DESCRIBE_CONFIGS", "READ", "WRITE")
_GROUP_RIGHTS = ("DESCRIBE", "READ")


@dataclass(frozen=True)
class CheckOutcome:
    """The outcome of a check. `problem` is empty where all is well."""

    backend: str
    check: str
    problem: str = ""


def examine(settings: Settings) -> Iterator[CheckOutcome]:
    """Check one backend after the other."""
    for backend, checks in (
        ("kafka", _kafka(settings)),
        ("redis", _redis(settings)),
        ("clickhouse", _clickhouse(settings)),
        ("archive", _archive(settings)),
    ):
        for name, check in checks:
            try:
                problems = check()
            except AdclickError as error:
                yield CheckOutcome(backend, name, str(error))
                break
            yield from (CheckOutcome(backend, name, problem) for problem in problems or [""])


Checks = Iterator[tuple[str, Callable[[], list[str]]]]


def _kafka(settings: Settings) -> Checks:
    kafka = settings.kafka_connection
    admins = list[Admin]()

    def connect() -> list[str]:
        admins.append(Admin(kafka, timeout_s=_TIMEOUT_S))
        admins[0].cluster_id()
        return []

    def connect_by_column() -> list[str]:
        connector = Connector(kafka)
        for address in admins[0].addresses():
            try:
                connector.open(address, _TIMEOUT_S)[0].close()
            except (OSError, EOFError) as error:
                return [f"Kafka: broker {address[0]}:{address[1]}: {error}"]
        return []

    def rights() -> list[str]:
        known = admins[0].partitions()
        there = [topic.name for topic in topics.wanted(settings) if topic.name in known]
        groups = [settings.topic(group) for group in topics.GROUPS]
        allowed = admins[0].allowed(there, groups)
        needed = dict.fromkeys(there, _TOPIC_RIGHTS) | dict.fromkeys(groups, _GROUP_RIGHTS)
        return [
            f"this user lacks {', '.join(lacking)} on {'group' if name in groups else 'topic'} {name}"
            for name, operations in needed.items()
            if (lacking := [operation for operation in operations if operation not in allowed[name]])
        ]

    def transact() -> list[str]:
        TransactionalProducer(kafka, f"{settings.key_prefix}doctor-{uuid.uuid4().hex[:8]}").open(_TIMEOUT_S)
        return []

    def topics_are_right() -> list[str]:
        return [f"topic {d.topic} {d.explanation}" for d in topic_setup.deviations(admins[0], settings)]

    yield "answers", connect
    yield "our own reader is let in", connect_by_column
    yield "topics", topics_are_right
    yield "rights on topics and groups", rights
    yield "right to write in transactions", transact


def _redis(settings: Settings) -> Checks:
    redis = Redis(settings.redis_access, timeout_s=_TIMEOUT_S)
    probe = f"{settings.key_prefix}probe"

    def connect() -> list[str]:
        redis.call("PING")
        return []

    def write() -> list[str]:
        redis.call("SET", probe, "1", "PX", 1_000)
        redis.call("EVAL", "return redis.call('GET', KEYS[1])", 1, probe)
        return []

    def keeps_all() -> list[str]:
        reason = eviction_risk(redis)
        return [f"{reason} ({NEVER_EVICT})"] if reason else []

    def clock() -> list[str]:
        skews = {
            server: int(seconds) + int(micros) / 1e6 - time.time()
            for server, (seconds, micros) in redis.on_each_primary("TIME").items()
        }
        return [
            f"the clock of Redis at {server} is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's: set both by NTP"
            for server, skew_s in skews.items()
            if abs(skew_s) > _MOST_SKEW_S
        ]

    def same_kafka() -> list[str]:
        with contextlib.suppress(AdclickError):
            Admin(settings.kafka_connection, timeout_s=_TIMEOUT_S).cluster_id()
            try:
                migration.check_cluster(settings)
            except UserError as error:
                return [str(error)]
        return []

    yield "answers", connect
    yield "takes writes and scripts", write
    yield "evicts nothing", keeps_all
    yield "clock", clock
    yield "belongs to this Kafka", same_kafka


def _clickhouse(settings: Settings) -> Checks:
    client = ClickHouse.of(settings, timeout_s=int(_TIMEOUT_S))

    def connect() -> list[str]:
        client.rows("SELECT 1")
        return []

    def tables() -> list[str]:
        missing = migration.unmigrated_tables(settings)
        return [f"database {settings.database} lacks {name}: adclick migrate makes it" for name in missing]

    def rights() -> list[str]:
        return [
            f"this user lacks {right} on {settings.database}.*"
            for right in ("SELECT", "INSERT")
            if client.rows(f"CHECK GRANT {right} ON {settings.database}.*")[0][0] != 1
        ]

    yield "answers", connect
    yield "tables", tables
    yield "rights", rights


def _archive(settings: Settings) -> Checks:
    def write() -> list[str]:
        FileStore(settings.archive).check_writable(f".probe-doctor-{uuid.uuid4().hex}")
        return []

    yield "takes files", write
