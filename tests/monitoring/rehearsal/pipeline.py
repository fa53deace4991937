"""Scenes of the first day, of the pipeline, and of the routers."""

from __future__ import annotations

import signal
from typing import Any

from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from infra.clock import now_ms
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.redis.client import Redis
from ingest.dedup import registry
from query.status import read_status
from tests.clusters.certificates import DAY
from tests.damage import damage_batch
from tests.monitoring.rehearsal.load import Message, make_event
from tests.monitoring.rehearsal.scenes import Expected, Scene
from tests.monitoring.rehearsal.stack import ARCHIVE_BYTES, RATE, TLS_ROUTER, RehearsedStack, backlog
from tests.product import wait_until
from tests.redis_loss import lose_keys

_BACKLOG = 1_300_000
_RETENTION = "retention.ms"
_FULL = "full"


# -- the first day ------------------------------------------------------------------------------------------------------


class _FirstDay:
    """All that may be forgotten on the first day."""

    retention_ms = ""

    def begin(self, stack: RehearsedStack) -> None:
        stack.load.rate = 2 * RATE
        (stack.archive / _FULL).write_bytes(b"\0" * int(ARCHIVE_BYTES * 0.98))
        kafka, topic = Admin(stack.settings.kafka_connection), stack.settings.topic(topics.ARCHIVE)
        self.retention_ms = kafka.configs([topic])[topic][_RETENTION]
        kafka.configure({topic: {_RETENTION: "600000"}})

    def put_in_order(self, stack: RehearsedStack) -> None:
        stack.load.rate = RATE
        (stack.archive / _FULL).unlink()
        stack.start_pipeline()
        stack.identity = stack.authority.issue("router", lasts=90 * DAY)
        stack.end(TLS_ROUTER)
        stack.start_tls_router()
        Admin(stack.settings.kafka_connection).configure(
            {stack.settings.topic(topics.ARCHIVE): {_RETENTION: self.retention_ms}}
        )


_EXPIRES = (
    "a router with a certificate of a day",
    "the file is renewed, the router restarted",
    "certificate",
    "notAfter",
)
_DISK = ("a file fills the archive's disk to 98 %", "the file is removed", "df", r"9\d%")

_FIRST = _FirstDay()
FIRST_DAY = Scene(
    "first day", (
        Expected("AdclickSilentShards", "critical", "no stream worker was ever started", "start a stream worker",
                 "adclick status --json", r'"silent_shards": \[\s*0'),
        Expected("AdclickUnreadPartitions", "critical", "no ingest worker was ever started", "start an ingest worker",
                 "/readyz", "ingest partition 0"),
        Expected("AdclickStalled", "critical", "the same: events come, nothing reads them", "start an ingest worker",
                 "/readyz", "nothing is read from offset"),
        Expected("AdclickLagGrows", "warning", f"the same, {2 * RATE} events a second", "start ingest workers",
                 "/metrics", r'adclick_lag_messages\{partition="0",topic="ad-events"\} [1-9]'),
        Expected("AdclickCertificate", "warning", *_EXPIRES),
        Expected("AdclickCertificate", "critical", *_EXPIRES),
        Expected("AdclickArchiveDisk", "warning", *_DISK),
        Expected("AdclickArchiveDisk", "critical", *_DISK),
        Expected("AdclickWarnings", "info", "retention of ad-archive set to ten minutes", "set it back",
                 "adclick status", "ad-archive .*retention"),
    ), _FIRST.begin, _FIRST.put_in_order,
)  # fmt: skip


# -- load and producers -------------------------------------------------------------------------------------------------


def _fall_behind(stack: RehearsedStack) -> None:
    stack.end("ingest-0")
    stack.send(backlog(_BACKLOG))
    # A slow machine: many small transactions.
    stack.start("ingest-0", ADCLICK_INGEST_BATCH="1000")


def _add_ingest(stack: RehearsedStack) -> None:
    stack.end("ingest-0")
    stack.start("ingest-0")
    stack.start("ingest-1")


_BEHIND = (f"{_BACKLOG:,} messages for an ingest worker with batches of 1,000", "add an ingest worker, and let both take whole batches",
           "/v1/pipeline", '"level": ?"(sampling|critical|elevated)"')  # fmt: skip

OVERLOAD = Scene(
    "overload", (Expected("AdclickOverload", "warning", *_BEHIND), Expected("AdclickOverload", "critical", *_BEHIND)),
    _fall_behind, _add_ingest,
)  # fmt: skip


class _OpenTransaction:
    """A producer that forgets its transaction."""

    producer: Any = None

    def begin(self, stack: RehearsedStack) -> None:
        stack.load.invalid = 0.1
        settings = {
            "bootstrap.servers": stack.settings.kafka,
            "transactional.id": "forgetful",
            "transaction.timeout.ms": 600_000,
        }
        self.producer = Producer(settings)
        self.producer.init_transactions(60)
        self.producer.begin_transaction()
        key, value = make_event(0)
        self.producer.produce(stack.settings.topic(topics.EVENTS), value, key, partition=0)
        self.producer.flush(60)

    def abort(self, stack: RehearsedStack) -> None:
        stack.load.invalid = 0.0
        self.producer.abort_transaction(60)


_TRANSACTION = _OpenTransaction()
PRODUCERS = Scene(
    "producers", (
        Expected("AdclickDeadLetters", "warning", "a tenth of the messages is cut off", "the producer is corrected",
                 "adclick dead-letters list", "malformed"),
        Expected("AdclickOpenTransaction", "warning", "a producer leaves its transaction open", "the producer aborts it",
                 "adclick status", "transaction that is open since offset"),
    ), _TRANSACTION.begin, _TRANSACTION.abort,
)  # fmt: skip


def _pause_load(stack: RehearsedStack) -> None:
    stack.load.rate = 0


def _resume_load(stack: RehearsedStack) -> None:
    stack.load.rate = RATE


SILENCE = Scene(
    "silence", (
        Expected("AdclickNoEvents", "critical", "nothing is sent", "the producer is started again", "adclick doctor", "(?i)kafka"),
    ), _pause_load, _resume_load,
)  # fmt: skip


def _halt_canaries(stack: RehearsedStack) -> None:
    stack.send_signal("canary-0", signal.SIGSTOP)


def _continue_canaries(stack: RehearsedStack) -> None:
    stack.send_signal("canary-0", signal.SIGCONT)


_NO_CANARY = (
    "the sender of canaries hangs (SIGSTOP)",
    "it goes on",
    "adclick status",
    r"\n(ingest|archive) +(9\d|\d{3,})\.",
)
CANARIES = Scene(
    "canaries", (
        Expected("AdclickCanaryLate", "critical", *_NO_CANARY), Expected("AdclickCanaryLate", "warning", *_NO_CANARY),
    ), _halt_canaries, _continue_canaries,
)  # fmt: skip


# -- workers ------------------------------------------------------------------------------------------------------------


def _halt_stream(stack: RehearsedStack) -> None:
    stack.send_signal("stream-0", signal.SIGSTOP)


def _restart_stream(stack: RehearsedStack) -> None:
    stack.end("stream-0", signal.SIGKILL)
    stack.start("stream-0")


_BEHIND_NOW = r'"stream":\s*\[[^]]*"seconds":\s*[1-9]'
_HALTED = "the stream worker hangs (SIGSTOP)"
STREAM = Scene(
    "stream", (
        Expected("AdclickStreamLag", "warning", _HALTED, "it is killed and started again", "/v1/pipeline", _BEHIND_NOW),
        Expected("AdclickWatermarkOld", "critical", _HALTED, "the same", "/v1/pipeline", _BEHIND_NOW),
        Expected("AdclickStalled", "critical", _HALTED, "the same", "/readyz", "stream shard 0 shows nothing new"),
    ), _halt_stream, _restart_stream,
)  # fmt: skip


def _break_workers(stack: RehearsedStack) -> None:
    # As one who restores it by hand: it cannot be read with FINAL.
    stack.clickhouse("RENAME TABLE {db}.detector_checkpoints TO {db}.elsewhere")
    stack.clickhouse("CREATE TABLE {db}.detector_checkpoints ENGINE = Memory AS SELECT * FROM {db}.elsewhere")
    _restart_stream(stack)
    stack.redis.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    stack.end("ingest-0")
    stack.start("ingest-0")


def _mend_workers(stack: RehearsedStack) -> None:
    stack.clickhouse("DROP TABLE {db}.detector_checkpoints")
    stack.clickhouse("RENAME TABLE {db}.elsewhere TO {db}.detector_checkpoints")
    stack.redis.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    stack.start("ingest-0")


STOPPED = Scene(
    "stopped", (
        Expected("AdclickWorkerStopped", "critical", "Redis may evict keys, and an ingest worker starts",
                 "maxmemory-policy noeviction, as the error says; the worker is started again", "adclick status", "may evict keys"),
        Expected("AdclickDetectorStopped", "warning", "the table of its checkpoints is made again, with another engine", "the former table is put back",
                 "adclick status", "the detector has stopped"),
    ), _break_workers, _mend_workers,
)  # fmt: skip


class _Copies:
    """Events that were counted before the ids of all were lost."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def lose_ids(self, stack: RehearsedStack) -> None:
        settings = stack.settings
        self.messages = backlog(1000)
        stack.send(self.messages)
        wait_until(lambda: stack.lag() < 500, 60, "the events are read")
        admin = Admin(settings.kafka_connection)
        topic = settings.topic(topics.EVENTS)
        ends = [TopicPartition(topic, p, end) for p, end in enumerate(admin.ends(topic, settings.event_partitions))]
        client = AdminClient({"bootstrap.servers": settings.kafka})  # one that is dropped answers no future
        for future in client.delete_records(ends).values():
            future.result(60)
        lose_keys(Redis(settings.redis), registry.all_keys(settings.key_prefix))
        stack.send(self.messages)


DOUBT = Scene(
    "doubt", (
        Expected("AdclickDoubt", "warning", "Redis loses all ids, ad-events its messages; 1,000 copies come",
                 "none: the nightly run decides, no more copies come", "log of ingest-0", "ids are lost for good"),
    ), _Copies().lose_ids, lambda _: None,
)  # fmt: skip


class _Poison:
    """A record batch that no worker can read."""

    def damage(self, stack: RehearsedStack) -> None:
        settings, topic = stack.settings, stack.settings.topic(topics.EVENTS)
        stack.load.rate = 0
        wait_until(lambda: stack.lag() == 0, 60, "all is read")
        stack.end_all("ingest")
        stack.send([make_event(now_ms()) for _ in range(200)])
        last = Admin(settings.kafka_connection).ends(topic, settings.event_partitions)[0] - 1
        damage_batch(stack.folder.path / "kafka" / "data" / f"{topic}-0", last, "checksum")
        stack.start("ingest-0")
        stack.load.rate = RATE

    def set_aside(self, stack: RehearsedStack) -> None:
        topic = stack.settings.topic(topics.EVENTS)
        problem = next(text for name, text in read_status(stack.settings)["problems"].items() if name.startswith(topic))
        stack.look(f"adclick dead-letters set-aside {problem.rsplit(' ', 1)[1]}")


_POISON = _Poison()
POISON = Scene(
    "poison", (
        Expected("AdclickPoisonedPartition", "critical", "a record batch is damaged on the broker's disk",
                 "adclick dead-letters set-aside, as the problem says", "adclick status", "dead-letters set-aside"),
    ), _POISON.damage, _POISON.set_aside,
)  # fmt: skip


# -- routers ------------------------------------------------------------------------------------------------------------


def _halt_routers(stack: RehearsedStack) -> None:
    stack.end(TLS_ROUTER, signal.SIGKILL)
    stack.send_signal("query-0", signal.SIGSTOP)


def _restart_routers(stack: RehearsedStack) -> None:
    # `adclick up` starts it again.
    stack.send_signal("query-0", signal.SIGKILL)
    stack.start_tls_router()


ROUTERS = Scene(
    "routers", (
        Expected("AdclickRouterDown", "warning", "one router is killed, the other hangs", "restart them", "targets of Prometheus", "down"),
        Expected("AdclickNoRouter", "critical", "the same", "restart them", "/healthz", "no answer"),
    ), _halt_routers, _restart_routers,
)  # fmt: skip
