"""What an installation needs before its workers can run: topics in Kafka, tables in ClickHouse.

`adclick migrate` and `adclick up` make it; workers check it, so that one started too early says so.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Any

from infra import topics
from infra.clickhouse import client as clickhouse
from infra.clickhouse.client import ClickHouse
from infra.errors import AdclickError, Unavailable, UserError
from infra.kafka import Admin
from infra.patience import patiently
from infra.redis import Redis
from infra.settings import Settings

_LOCK_S = 30
_LOCK_WAIT_S = 300.0
_CHECK_TIMEOUT_S = 3
# A broker that is coming back from a crash does not know its topics in the first moments.
_TOPIC_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Changes:
    """What a migration has made: names of topics, and of the SQL files it applied."""

    topics: list[str]
    tables: list[str]


def migrate(settings: Settings, lock_wait_s: float = _LOCK_WAIT_S) -> Changes:
    """Make what is missing, and set what each topic keeps. Idempotent; of several that run at once, one waits for the other.

    Raises UserError where Kafka or ClickHouse cannot take it, Unavailable where a backend is away.
    """
    redis = Redis(settings.redis)
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


def _make(settings: Settings) -> Changes:
    made = topics.ensure(settings)
    with contextlib.closing(ClickHouse(settings.clickhouse, settings.database)) as client:
        return Changes(made, clickhouse.migrate(client))


def missing_topics(settings: Settings) -> list[str]:
    """Topics of the installation that Kafka does not have. Raises Unavailable."""
    known = Admin(settings.kafka, timeout_s=_CHECK_TIMEOUT_S).partitions(_CHECK_TIMEOUT_S)
    return [topic.name for topic in topics.wanted(settings) if topic.name not in known]


def missing_tables(settings: Settings) -> list[str]:
    """SQL files that ClickHouse has not been brought up to date with. Raises Unavailable."""
    client = ClickHouse(settings.clickhouse, settings.database, timeout_s=_CHECK_TIMEOUT_S)
    with contextlib.closing(client):
        return clickhouse.pending(client)


def shortcomings(settings: Settings) -> dict[str, str]:
    """What is missing, by backend; a backend that does not answer is left out."""
    checks: dict[str, Callable[[Settings], None]] = {"kafka": _refuse_without_topics, "clickhouse": check_tables}
    problems: dict[str, str] = {}
    for name, check in checks.items():
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


def check_topics(settings: Settings) -> None:
    """Raise UserError where Kafka answers and lacks topics; one that is away is left to the caller's own retries."""
    with contextlib.suppress(Unavailable):
        _check_topics_for_a_while(settings)


def check_tables(settings: Settings) -> None:
    """Raise UserError where ClickHouse answers and lacks tables; one that is away is left to the caller's own retries."""
    with contextlib.suppress(Unavailable):
        missing = missing_tables(settings)
        if missing:
            raise UserError(
                f"ClickHouse's database {settings.database} lacks the tables of {_listed(missing)}",
                hint="adclick migrate makes them",
            )


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


def _listed(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
