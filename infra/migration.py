"""What an installation needs before its workers can run: topics in Kafka, tables in ClickHouse.

`adclick migrate` and `adclick up` make it; workers check it, so that one started too early says so.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from threading import Event
from typing import Any

from infra.clickhouse import schema
from infra.clickhouse.client import ClickHouse
from infra.errors import AdclickError, Unavailable, UserError
from infra.kafka import topic_setup, topics
from infra.kafka.admin import Admin
from infra.redis.client import Redis
from infra.retries import patiently
from infra.settings import Settings

_LOCK_S = 30
_LOCK_WAIT_S = 300.0
_CHECK_TIMEOUT_S = 3
# A broker that is coming back from a crash does not know its topics in the first moments.
_TOPIC_PATIENCE_S = 10.0


@dataclass(frozen=True)
class MigrationReport:
    """What a migration has made: names of topics, and of the SQL files it applied and the tables that it made again."""

    topics: list[str]
    tables: list[str]


def migrate(settings: Settings, lock_wait_s: float = _LOCK_WAIT_S) -> MigrationReport:
    """Make what is missing, and set what each topic keeps. Idempotent; of several that run at once, one waits for the other.

    Raises UserError where Kafka or ClickHouse cannot take it, Unavailable where a backend is away.
    """
    redis = Redis(settings.redis_access)
    deadline = time.monotonic() + lock_wait_s
    with contextlib.closing(redis), contextlib.ExitStack() as lock:
        while True:
            lease = redis.lease(f"{settings.key_prefix}migrate", _LOCK_S, "another migration is running")
            try:
                lock.enter_context(lease)
                break
            except UserError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        return _make(settings)


def _make(settings: Settings) -> MigrationReport:
    with contextlib.closing(ClickHouse.of(settings)) as client:
        client.rows("SELECT 1")  # before anything is made elsewhere
        check_cluster(settings)
        made = topic_setup.ensure(settings)
        return MigrationReport(made, schema.apply_migrations(client))


def missing_topics(settings: Settings) -> list[str]:
    """Topics of the installation that Kafka does not have. Raises Unavailable."""
    known = Admin(settings.kafka_connection, timeout_s=_CHECK_TIMEOUT_S).partitions(_CHECK_TIMEOUT_S)
    return [topic.name for topic in topics.wanted(settings) if topic.name not in known]


def table_problems(settings: Settings) -> list[str]:
    """What the tables in ClickHouse are not up to date with: tables that are gone, SQL files that were not applied, columns of an older
    schema. Raises Unavailable, and UserError where its cluster has another number of shards than when they were made."""
    with contextlib.closing(ClickHouse.of(settings, timeout_s=_CHECK_TIMEOUT_S)) as client:
        schema.check_shards(client)
        missing = [*schema.missing_tables(client), *schema.pending(client)]
        older = schema.missing_columns(client)
    named = [f"lacks {_described(name)} (adclick migrate makes them)" for name in missing]
    return named + [
        f"has a table of an older schema: {table} lacks {', '.join(columns)} (restore it; or drop it, and adclick migrate makes it again)"
        for table, columns in older.items()
    ]


def shortcomings(settings: Settings, away: Collection[str] = ()) -> dict[str, str]:
    """What is missing, by backend; one that does not answer is left out, and one of `away` is not tried."""
    checks: dict[str, Callable[[Settings], None]] = {"kafka": _refuse_without_topics, "clickhouse": check_tables}
    problems: dict[str, str] = {}
    for name, check in checks.items():
        if name in away:
            continue
        try:
            check(settings)
        except UserError as error:
            problems[name] = str(error)
        except AdclickError:
            continue
    return problems


def wait_for_topics(settings: Settings, log: Any) -> None:
    """For workers: return once Kafka has the installation's topics, however long it is away. Raises UserError where it lacks one."""
    patiently(lambda: _check_topics_for_a_while(settings), Event(), log)
    patiently(lambda: check_cluster(settings), Event(), log)


def check_cluster(settings: Settings) -> None:
    """Raise UserError where Kafka is not the cluster that Redis has the ids and the sums of. Raises Unavailable where one of them is away.

    Offsets of another cluster would be taken for those of this one: events for copies, and minutes for some that are shown already.
    """
    cluster = Admin(settings.kafka_connection).cluster_id()
    with contextlib.closing(Redis(settings.redis_access)) as redis:
        redis.call("SET", _cluster_key(settings), cluster, "NX")
        refuse_other_cluster(settings, redis, cluster)


def refuse_other_cluster(settings: Settings, redis: Redis, cluster: str) -> None:
    """Raise UserError where Redis has ids and sums of another cluster of Kafka than this one. Raises Unavailable. Changes nothing."""
    value = redis.call("GET", _cluster_key(settings))
    known = cluster if value is None else value.decode()
    if known != cluster:
        raise UserError(
            f"Kafka at {settings.kafka} is cluster {cluster}, and Redis belongs to cluster {known}",
            hint=f"correct the addresses; or use another ADCLICK_NAMESPACE; or empty this Redis of {settings.key_prefix}*",
        )


def _cluster_key(settings: Settings) -> str:
    return f"{settings.key_prefix}kafka"


def check_topics(settings: Settings) -> None:
    """Raise UserError where Kafka answers and lacks topics; one that is away is left to the caller's own retries."""
    with contextlib.suppress(Unavailable):
        _check_topics_for_a_while(settings)


def check_tables(settings: Settings) -> None:
    """Raise UserError where ClickHouse answers and lacks tables or columns; one that is away is left to the caller's own retries."""
    with contextlib.suppress(Unavailable):
        problems = table_problems(settings)
        if problems:
            more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
            raise UserError(f"ClickHouse's database {settings.database} {problems[0]}{more}")


def _check_topics_for_a_while(settings: Settings) -> None:
    deadline = time.monotonic() + _TOPIC_PATIENCE_S
    while time.monotonic() < deadline:
        if not missing_topics(settings):
            return
        time.sleep(0.2)
    _refuse_without_topics(settings)


def _refuse_without_topics(settings: Settings) -> None:
    missing = missing_topics(settings)
    if missing:
        raise UserError(
            f"Kafka at {settings.kafka} lacks topic {_listed(missing)}", hint="adclick migrate makes what is missing"
        )


def _described(name: str) -> str:
    return f"the tables of {name}" if name.endswith(".sql") else f"table {name}"


def _listed(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
