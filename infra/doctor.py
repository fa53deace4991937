"""Tries each connection and right that an installation needs, and says in a line each what is missing.

A check that fails does not end the others; those that need it are skipped, and named. Nothing of the installation is changed: a probe that is written
is removed again, or expires.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from infra import migration
from infra.addresses import mask
from infra.clickhouse import schema
from infra.clickhouse.client import ClickHouse
from infra.clickhouse.grants import grant_statement, grants
from infra.clock import describe_skews
from infra.errors import AdclickError, UserError, is_away
from infra.file_store import FileStore
from infra.kafka import topic_setup, topics
from infra.kafka.admin import Admin
from infra.kafka.sasl import Connector
from infra.kafka.transactions import TransactionalProducer
from infra.process_needs import ALL_BUT_MIGRATE, MIGRATE, NEEDS
from infra.redis.client import Redis
from infra.redis.eviction import NEVER_EVICT, eviction_risk
from infra.redis.rights import RIGHTS, lacking_rights
from infra.settings import Settings

BACKENDS = ("settings", "kafka", "redis", "clickhouse", "archive")
PROCESSES = tuple(NEEDS)
"""What users of backends may be for: `adclick migrate`, a worker, or all other commands."""
_TIMEOUT_S = 5.0
_ANY_HOST = "the host name in the server's certificate is not verified: ADCLICK_REDIS has ssl_check_hostname=no"
_PUBLIC_SECRET = (
    "user ids are hashed with the default, which everybody knows: set ADCLICK_USER_SECRET before the first event"
)
_NO_KEY = "none is set: routers know only keys that `adclick keys create` made"

Checks = Iterator[tuple[str, Callable[[], list[str]]]]


@dataclass(frozen=True)
class CheckOutcome:
    """The outcome of a check. All three are empty where all is well; what a warning is about may be on purpose. `skipped`: why the check
    was not made."""

    backend: str
    check: str
    problem: str = ""
    warning: str = ""
    skipped: str = ""


class _Skipped(Exception):
    """A check cannot be made, for a reason that another one has named."""


class Examination:
    """The checks of an installation, backend by backend. `process`: which of PROCESSES the users of backends are for; empty: for all
    but `adclick migrate`."""

    def __init__(self, settings: Settings, process: str = "", clock: Callable[[], float] = time.time) -> None:
        """`clock`: this machine's, in epoch seconds."""
        self._settings, self._process, self._clock = settings, process, clock
        self._needs = NEEDS.get(process, ALL_BUT_MIGRATE)
        self._cluster_id = ""
        """Kafka's, once it has said it."""

    def outcomes(self, backends: Sequence[str] = BACKENDS) -> Iterator[CheckOutcome]:
        """Check one backend after the other."""
        checks_of = {
            "kafka": self._kafka, "redis": self._redis, "clickhouse": self._clickhouse, "archive": self._archive,
        }  # fmt: skip
        if "settings" in backends:
            yield from self._settings_checks()
        for backend in (b for b in backends if b in checks_of):
            failed = ""
            for name, check in checks_of[backend]():
                if failed:
                    yield CheckOutcome(backend, name, skipped=failed)
                    continue
                try:
                    problems = check()
                except _Skipped as reason:
                    yield CheckOutcome(backend, name, skipped=str(reason))
                except AdclickError as error:
                    yield CheckOutcome(backend, name, self._with_address(backend, error))
                    failed = f"`{name}` failed"
                else:
                    yield from (CheckOutcome(backend, name, problem) for problem in problems or [""])
            if backend == "redis" and self._settings.redis_access.is_any_host_accepted:
                yield CheckOutcome(backend, "verified", warning=_ANY_HOST)

    def _with_address(self, backend: str, error: AdclickError) -> str:
        """What went wrong; where a backend does not answer, with the setting that says where it is."""
        if is_away(error) and not error.hint:
            return f"{error} (ADCLICK_{backend.upper()} is {mask(str(getattr(self._settings, backend)))})"
        return str(error)

    # -- settings -----------------------------------------------------------------------------------------------

    def _settings_checks(self) -> Iterator[CheckOutcome]:
        settings = self._settings
        public = settings.user_secret == Settings.model_fields["user_secret"].default
        yield CheckOutcome("settings", "user_secret", warning=_PUBLIC_SECRET if public else "")
        if self._process in ("", "others"):
            yield CheckOutcome("settings", "api_key", warning="" if settings.api_key.get_secret_value() else _NO_KEY)

    # -- Kafka --------------------------------------------------------------------------------------------------

    def _kafka(self) -> Checks:
        settings, kafka = self._settings, self._settings.kafka_connection
        admins = list[Admin]()

        def connect() -> list[str]:
            admins.append(Admin(kafka, timeout_s=_TIMEOUT_S))
            self._cluster_id = admins[0].cluster_id()
            return []

        def connect_by_column() -> list[str]:
            connector = Connector(kafka)
            for address in admins[0].addresses():
                try:
                    connector.check(address, _TIMEOUT_S)
                except (OSError, EOFError, AdclickError) as error:
                    return [f"broker {address[0]}:{address[1]}: {error}"]
            return []

        def topics_are_right() -> list[str]:
            return [f"topic {d.topic} {d.explanation}" for d in topic_setup.deviations(admins[0], settings)]

        def clock() -> list[str]:
            return describe_skews({"Kafka": self._log_time_ahead_s(admins[0])})

        def transact() -> list[str]:
            # Always the same id: brokers remember each for a week.
            TransactionalProducer(kafka, f"{settings.key_prefix}doctor").open(_TIMEOUT_S)
            return []

        yield "answers", connect
        if self._process in ("", "ingest"):
            yield "our own reader is let in", connect_by_column
        if self._needs.describes_all:
            yield "topics", topics_are_right
        yield "rights on topics and groups", lambda: self._kafka_rights(admins[0])
        if self._process != MIGRATE and self._needs.describes_all:
            yield "clock", clock
        if self._needs.is_transactional:
            yield "right to write in transactions", transact

    def _kafka_rights(self, admin: Admin) -> list[str]:
        on_topics, on_groups = self._topic_rights(admin), self._group_rights()
        allowed = admin.allowed(on_topics, on_groups)
        return (
            self._uncreatable(admin)
            + self._unseen(admin)
            + [
                f"this user lacks {', '.join(lacking)} on {'group' if name in on_groups else 'topic'} {name}"
                for name, operations in (on_topics | on_groups).items()
                if (lacking := [operation for operation in operations if operation not in allowed[name]])
            ]
        )

    def _uncreatable(self, admin: Admin) -> list[str]:
        if self._process != MIGRATE:
            return []
        known = admin.partitions()
        missing = [topic.name for topic in topics.wanted(self._settings) if topic.name not in known]
        return [f"this user lacks CREATE on topic {name}" for name in admin.uncreatable(missing)]

    def _unseen(self, admin: Admin) -> list[str]:
        """What is wrong with topics of a process for which they are not looked at otherwise."""
        if self._needs.describes_all:
            return []
        known, needed = admin.partitions(), (*self._needs.reads, *self._needs.writes)
        return [
            f"topic {topic} does not exist, or this user lacks DESCRIBE on it"
            for topic in map(self._settings.topic, needed)
            if topic not in known
        ]

    def _topic_rights(self, admin: Admin) -> dict[str, list[str]]:
        """The operations that this process needs on each topic that is there."""
        needs, known, rights = self._needs, admin.partitions(), dict[str, list[str]]()
        for name in topics.NAMES:
            if (topic := self._settings.topic(name)) in known:
                granted = ["READ"] * (name in needs.reads) + ["WRITE"] * (name in needs.writes)
                if needs.describes_all:
                    rights[topic] = ["DESCRIBE", "DESCRIBE_CONFIGS", *granted]
                elif granted:
                    rights[topic] = ["DESCRIBE", *granted]
        if self._process == MIGRATE:
            for topic, operation in topic_setup.changes_due(admin, self._settings):
                rights[topic].append(operation)
        return rights

    def _group_rights(self) -> dict[str, list[str]]:
        """The operations that this process needs on each group."""
        topic_of, needs = self._settings.topic, self._needs
        rights = {topic_of(group): ["DESCRIBE"] for group in needs.watches}
        return rights | {topic_of(group): ["DESCRIBE", "READ"] for group in needs.joins}

    def _log_time_ahead_s(self, admin: Admin) -> float:
        """By how much the newest log time of `ad-events` is ahead of this machine's clock. Kafka tells its time in no other way without a
        write, so a clock that is behind is not seen."""
        topic = self._settings.topic(topics.EVENTS)
        count = admin.partitions().get(topic, 0)
        if not count or admin.configs([topic])[topic].get("message.timestamp.type") != "LogAppendTime":
            return 0.0
        return max(0.0, max(admin.newest_timestamps_ms(topic, count)) / 1000 - self._clock())

    # -- Redis --------------------------------------------------------------------------------------------------

    def _redis(self) -> Checks:
        if not self._needs.uses_redis:
            return
        settings = self._settings
        clients, lacking = list[Redis](), list[str]()

        def connect() -> list[str]:
            clients.append(Redis(settings.redis_access, timeout_s=_TIMEOUT_S))
            clients[0].call("PING")
            return []

        def rights() -> list[str]:
            process = "others" if self._process == MIGRATE else self._process
            lacking.extend(lacking_rights(settings.redis_access, settings.key_prefix, process, _TIMEOUT_S))
            return [f"this user lacks {rule}: ACL SETUSER {_user(settings.redis)} {rule}" for rule in lacking]

        def write() -> list[str]:
            # In the first pattern alone, which no reader lists: every key of `ingest:*` is taken for a worker's report.
            pattern = RIGHTS[self._process].keys[0] if self._process in RIGHTS else "*"
            if pattern.endswith("*"):
                probe = f"{settings.key_prefix}{pattern.replace('*', 'doctor')}"
                clients[0].call("SET", probe, "1", "PX", 1_000)
                clients[0].call("EVAL", "return redis.call('GET', KEYS[1])", 1, probe)
            return []

        def keeps_all() -> list[str]:
            reason = eviction_risk(clients[0])
            return [f"{reason} ({NEVER_EVICT})"] if reason else []

        def clock() -> list[str]:
            began_s = self._clock()
            replies = clients[0].on_each_primary("TIME")
            now_s = (began_s + self._clock()) / 2
            return describe_skews(
                {f"Redis at {server}": int(s) + int(us) / 1e6 - now_s for server, (s, us) in replies.items()}
            )

        def same_kafka() -> list[str]:
            if not self._cluster_id:
                raise _Skipped("Kafka does not answer")
            try:
                migration.refuse_other_cluster(settings, clients[0], self._cluster_id)
            except UserError as error:
                return [str(error)]
            return []

        yield "answers", connect

        def with_rights(check: Callable[[], list[str]]) -> Callable[[], list[str]]:
            def check_if_allowed() -> list[str]:
                if lacking:
                    raise _Skipped("`rights` failed")
                return check()

            return check_if_allowed

        yield "rights", rights
        yield "takes writes and scripts", with_rights(write)
        yield "evicts nothing", with_rights(keeps_all)
        yield "clock", with_rights(clock)
        yield "belongs to this Kafka", with_rights(same_kafka)

    # -- ClickHouse ---------------------------------------------------------------------------------------------

    def _clickhouse(self) -> Checks:
        if not self._needs.clickhouse:
            return
        settings = self._settings
        client = ClickHouse.of(settings, timeout_s=int(_TIMEOUT_S))
        lacking = list[str]()

        def connect() -> list[str]:
            client.rows("SELECT 1")
            return []

        def rights() -> list[str]:
            needed = grants(self._needs.clickhouse, schema.all_statements(), settings.database, client.deployment)
            lacking.extend(grant for grant in needed if client.rows(f"CHECK GRANT {grant}")[0][0] != 1)
            user = f"`{_user(settings.clickhouse)}`"
            return [f"this user lacks {grant}: {grant_statement(grant, user, client.deployment)}" for grant in lacking]

        def tables() -> list[str]:
            if any(grant.startswith("SELECT ON") for grant in lacking):
                raise _Skipped("without SELECT no table is seen")
            return [f"database {settings.database} {problem}" for problem in migration.table_problems(settings)]

        def clock() -> list[str]:
            began_s = self._clock()
            ((now_ms,),) = client.rows("SELECT toUnixTimestamp64Milli(now64(3))")
            return describe_skews({"ClickHouse": now_ms / 1000 - (began_s + self._clock()) / 2})

        yield "answers", connect
        yield "rights", rights
        yield "tables", tables
        yield "clock", clock

    # -- the archive --------------------------------------------------------------------------------------------

    def _archive(self) -> Checks:
        def files() -> list[str]:
            store, probe = FileStore(self._settings.archive), f".probe-doctor-{uuid.uuid4().hex}"
            return store.lacking_rights(probe, reads_only=self._needs.archive == "read")

        if self._needs.archive:
            yield f"right to {self._needs.archive} files", files


def _user(url: str) -> str:
    """The user that an address names."""
    return unquote(urlsplit(url).username or "") or "default"
