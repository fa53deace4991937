"""Changes that others make to ad-events while it is read: timestamps, topics recreated or grown, open transactions, offsets."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from batch import coverage
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, now_ms
from infra.errors import AdclickError, InputLost, Unavailable, UserError
from infra.file_store import FileStore
from infra.kafka import topic_setup, topics
from infra.kafka.admin import Admin
from infra.kafka.consumers import read_to_end
from infra.redis.client import Redis
from infra.settings import Settings
from ingest import blocks
from ingest.archive import files as archive_files
from ingest.archive import schema as archive_schema
from ingest.archive import worker as archive_worker
from ingest.archive.schema import Decision
from ingest.dead_letters import letters as dead_letters
from ingest.dedup import registry
from ingest.worker import IngestWorker
from query.status import describe_unread, find_unready, read_status
from tests.integration.test_ingest_worker import archived_decisions
from tests.product import PATIENCE, assert_stays, wait_until

_ROW: dict[str, Any] = {
    "event_type": 1, "campaign_id": 1, "ad_id": 2, "advertiser_id": 3, "publisher_id": 4, "country": 0, "device": 0, "user": None,
    "cost_micros": 7, "weight": 1, "lateness": 0, "copy_of": None, "decision": Decision.COUNTED,
}  # fmt: skip
YEARS_MS = 3 * 365 * DAY_MS
_NUMBERS = itertools.count()


def event(name: str, time_ms: int | None = None) -> bytes:
    fields = {"event_type": "click", "campaign_id": 1, "ad_id": 1, "advertiser_id": 1, "publisher_id": 1}
    return json.dumps(fields | {"event_id": name, "event_time": time_ms or now_ms()}).encode()


def send(settings: Settings, partition: int, *names: str, stamp_ms: int = 0, time_ms: int | None = None) -> None:
    """Send events to one partition; `stamp_ms` is the producer's timestamp, by default now."""
    producer = Producer({"bootstrap.servers": settings.kafka})
    failures = list[Any]()
    for name in names:
        producer.produce(
            settings.topic(topics.EVENTS), event(name, time_ms), name.encode(), partition,
            timestamp=stamp_ms, on_delivery=lambda error, _: failures.append(error),
        )  # fmt: skip
    assert producer.flush(30) == 0
    assert not any(failures)


def names(count: int) -> list[str]:
    return [f"n{next(_NUMBERS)}" for _ in range(count)]


@contextlib.contextmanager
def running(worker: IngestWorker | archive_worker.ArchiveWorker) -> Iterator[list[Exception]]:
    """A worker in a thread; yields the list of what it raises."""
    raised = list[Exception]()

    def run() -> None:
        try:
            worker.run()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield raised
    finally:
        worker.stop()
        thread.join(60 * PATIENCE)
        assert not thread.is_alive()


def ingesting(settings: Settings, name: str = "w") -> contextlib.AbstractContextManager[list[Exception]]:
    """An ingest worker; yields the list of what it raises."""
    return running(IngestWorker(settings, name))


def wait_until_counted_once(settings: Settings, sent: list[str], seconds: float = 60) -> None:
    """Wait until all of these, and nothing else, are counted, each once."""
    counted = Counter[str]()

    def all_counted() -> bool:
        nonlocal counted
        with contextlib.suppress(Unavailable):  # a topic that was just made may have no leader yet
            counted = Counter(name for name, decision in archived_decisions(settings) if decision == Decision.COUNTED)
        return len(counted) >= len(sent)

    wait_until(all_counted, seconds, f"{len(sent)} events are counted")
    assert counted == Counter(sent)


def loss_of(raised: list[Exception]) -> InputLost:
    """Wait until a worker has stopped; returns its error, which is one line."""
    wait_until(lambda: raised, 60, "the worker stops")
    (error,) = raised
    assert isinstance(error, InputLost), error
    assert "\n" not in str(error)
    return error


def accepting(settings: Settings, error: InputLost) -> Settings:
    """Settings that accept the loss, as the error's hint says."""
    return settings.model_copy(update={"accept_loss": error.hint.split("ADCLICK_ACCEPT_LOSS=")[1]})


def status(settings: Settings) -> dict[str, Any]:
    return read_status(settings)


@pytest.fixture
def kafka(settings: Settings) -> AdminClient:
    return AdminClient({"bootstrap.servers": settings.kafka})


def configure(settings: Settings, **config: str) -> None:
    changes = {key.replace("_", "."): value for key, value in config.items()}
    Admin(settings.kafka_connection).configure({settings.topic(topics.EVENTS): changes})


def stamped_by_producers(settings: Settings) -> None:
    """Let the topic take timestamps of producers, whatever they are; returns once the broker does."""
    anything = str(2**62)
    configure(
        settings, message_timestamp_type="CreateTime",
        message_timestamp_after_max_ms=anything, message_timestamp_before_max_ms=anything,
    )  # fmt: skip
    topic, probe = settings.topic(topics.EVENTS), settings.event_partitions - 1

    def is_stamped() -> bool:
        producer = Producer({"bootstrap.servers": settings.kafka})
        producer.produce(topic, b"probe", None, probe, timestamp=1_000)
        producer.flush(20)
        return any(m.timestamp()[1] == 1_000 for m in read_to_end(settings.kafka_connection, topic, probe))

    wait_until(is_stamped, 30, "timestamps are the producer's")


def recreate(kafka: AdminClient, settings: Settings, topic: str = topics.EVENTS) -> None:
    name = settings.topic(topic)
    kafka.delete_topics([name])[name].result()
    admin = Admin(settings.kafka_connection)
    wait_until(lambda: name not in admin.partitions(), 30, "the topic is gone")
    definition = next(t for t in topics.wanted(settings) if t.name == name)
    wait_until(
        lambda: _is_created(admin, name, definition.partitions, definition.config), 30, "the topic is made again"
    )


def _is_created(admin: Admin, name: str, partitions: int, config: dict[str, str]) -> bool:
    admin.create({name: (partitions, config)})
    return name in admin.partitions()


def test_a_message_stamped_years_ahead_affects_no_other(settings: Settings) -> None:
    stamped_by_producers(settings)
    far = now_ms() + YEARS_MS
    with ingesting(settings):
        send(settings, 0, "stamp and event ahead", stamp_ms=far, time_ms=far)
        send(settings, 0, "stamp ahead", stamp_ms=far)
        send(settings, 0, "stamp behind", stamp_ms=now_ms() - YEARS_MS)
        wait_until(
            lambda: any("message.timestamp.type" in w for w in status(settings)["warnings"]), 30, "status warns of it"
        )
        first = names(100)
        send(settings, 0, *first, stamp_ms=now_ms())
        wait_until_counted_once(settings, first)
        wait_until(lambda: any("cannot be true" in w for w in status(settings)["warnings"]), 30, "status warns of it")
    topic_setup.ensure(settings)
    second = names(100)
    with ingesting(settings):
        send(settings, 0, *second, *first)
        wait_until_counted_once(settings, first + second)
        assert all("message.timestamp.type" not in w for w in status(settings)["warnings"])
    rejected = [x for x in dead_letters.read_letters(settings) if x.value != b"probe"]
    letters = {json.loads(x.value or b"")["event_id"]: x.headers["reason"] for x in rejected}
    assert letters == {
        "stamp and event ahead": "from-the-future", "stamp ahead": "bad-value", "stamp behind": "from-the-future",
    }  # fmt: skip
    # Generations turn with the clock: none is of the future.
    head = json.loads(Redis(settings.redis).call("GET", registry.redis_key(settings.key_prefix, 0, "head")))
    horizon_ms = settings.dedup_horizon_s * 1000
    assert max(map(int, head["generations"])) <= (now_ms() + 10 * MINUTE_MS) // horizon_ms
    assert len(head["generations"]) <= 2


@pytest.mark.parametrize("while_running", [False, True])
def test_a_recreated_topic_is_not_read_as_the_former_one(
    settings: Settings, kafka: AdminClient, while_running: bool
) -> None:
    first, second, third = names(50), names(10), names(200)
    with ingesting(settings) as raised:
        send(settings, 0, *first)
        wait_until_counted_once(settings, first)
        if while_running:
            recreate(kafka, settings)
            send(settings, 0, *second, *third)
            error = loss_of(raised)
    if not while_running:
        recreate(kafka, settings)
        # Beyond the offset that was read: it is the id that tells, not offsets.
        send(settings, 0, *second, *third)
        with ingesting(settings) as raised:
            error = loss_of(raised)
            problems = status(settings)["problems"]
        assert problems == {"w": str(error)}
    assert "deleted and made again" in error.message
    wait_until_counted_once(settings, first)
    with ingesting(accepting(settings, error), "v"):
        wait_until_counted_once(settings, first + second + third)
    # Accepted once, it is the topic.
    fourth = names(5)
    with ingesting(settings, "w") as raised:
        send(settings, 0, *fourth, *third)
        wait_until_counted_once(settings, first + second + third + fourth)
    assert raised == []


def test_another_program_in_the_group_of_ingest_is_named_and_what_it_took_is_counted(settings: Settings) -> None:
    before, taken = names(8), names(8)
    partitions = range(settings.event_partitions)
    with ingesting(settings):
        for p in partitions:
            send(settings, p, *before[p :: len(partitions)])
        wait_until_counted_once(settings, before)
        foreign = Consumer(
            {
                "bootstrap.servers": settings.kafka, "group.id": settings.topic(topics.INGEST_GROUP),
                "partition.assignment.strategy": "range", "enable.auto.commit": False,
            }
        )  # fmt: skip
        try:
            foreign.subscribe([settings.topic(topics.EVENTS)])

            def is_named() -> bool:
                foreign.poll(0.2)
                return bool(foreign.assignment()) and any("ingest" in line for line in unread(settings))

            wait_until(is_named, 60, "it is named")
            for p in partitions:
                send(settings, p, *taken[p :: len(partitions)])
            wait_until(lambda: foreign.poll(0.2) is not None, 60, "it has read some")
            foreign.commit(asynchronous=False)
        finally:
            foreign.close()
        wait_until_counted_once(settings, before + taken)
        wait_until(
            lambda: not any("ingest" in line for line in unread(settings)), 30, "the worker reports all partitions"
        )


def unread(settings: Settings) -> list[str]:
    return describe_unread(settings, read_status(settings))


def test_partitions_added_by_others_are_named_while_the_known_ones_are_read(
    settings: Settings, kafka: AdminClient
) -> None:
    topic = settings.topic(topics.EVENTS)
    before, after, beyond = names(20), names(20), names(30)
    with ingesting(settings):
        send(settings, 0, *before)
        wait_until_counted_once(settings, before)
        for future in kafka.create_partitions([NewPartitions(topic, 8)]).values():
            future.result()
        wait_until(lambda: Admin(settings.kafka_connection).partitions()[topic] == 8, 30, "there are eight")
        send(settings, 6, *beyond)
        send(settings, 1, *after)
        wait_until_counted_once(settings, before + after)
        report = status(settings)
        assert f"{topic} has partitions that are not read: 2 to 7" in report["warnings"]
        assert report["topics"][topic] == len(beyond)
        no_stream = [f"stream shard {s}" for s in range(settings.block_partitions)]
        wait_until(lambda: find_unready(settings) == no_stream, 10, "the worker has reported its partitions")
    assert topic_setup.ensure(settings) == [], "the old setting still starts"
    grown = settings.model_copy(update={"event_partitions": 8})
    topic_setup.ensure(grown)
    with ingesting(grown):
        wait_until_counted_once(grown, before + after + beyond)
        assert status(grown)["warnings"] == []
        wait_until(lambda: status(grown)["topics"][topic] == 0, 30, "nothing is left")
    with pytest.raises(UserError, match="set ADCLICK_EVENT_PARTITIONS to 8"):
        topic_setup.ensure(settings)


def test_messages_behind_an_open_transaction_are_lag_and_their_partition_is_not_silent(settings: Settings) -> None:
    topic = settings.topic(topics.EVENTS)
    quick = settings.model_copy(update={"silent_after_ms": 500, "heartbeat_ms": 100})
    foreign = Producer({"bootstrap.servers": settings.kafka, "transactional.id": f"{settings.namespace}foreign"})
    foreign.init_transactions(20 * PATIENCE)
    first, behind = names(10), names(100)

    def silent() -> dict[int, bool]:
        last = dict[int, bool]()
        for message in read_to_end(settings.kafka_connection, settings.topic(topics.BLOCKS), 0):
            for r in blocks.decode_block(message.value(), "here")[1].ranges:
                last[r.partition] = r.silent
        return last

    with ingesting(quick):
        send(settings, 0, *first)
        wait_until_counted_once(settings, first)
        wait_until(lambda: silent().get(0), 30, "partition 0 is silent")
        foreign.begin_transaction()
        foreign.produce(topic, event("open"), b"open", 0)
        foreign.flush(20)
        send(settings, 0, *behind)
        wait_until(lambda: not silent()[0], 30, "it is not silent any more")
        assert_stays(lambda: not silent()[0], 2 * quick.silent_after_ms / 1000, "a held back partition is not silent")
        report = status(settings)
        assert report["topics"][topic] == 1 + len(behind)
        assert report["open_transactions"] == {f"{topic}/0": {"offset": len(first), "messages": 1 + len(behind)}}
        assert any(f"{topic}/0: a producer's transaction" in w for w in report["warnings"])
        wait_until_counted_once(settings, first)
        foreign.commit_transaction(20 * PATIENCE)
        wait_until_counted_once(settings, [*first, "open", *behind])
        wait_until(lambda: silent()[0], 30, "partition 0 is silent again")
        assert status(settings)["open_transactions"] == {}


def test_messages_deleted_before_they_were_read_are_named_and_can_be_accepted(
    settings: Settings, kafka: AdminClient
) -> None:
    topic = settings.topic(topics.EVENTS)
    first, lost, last = names(10), names(20), names(30)
    with ingesting(settings):
        send(settings, 0, *first)
        wait_until_counted_once(settings, first)
    send(settings, 0, *lost, *last)
    for future in kafka.delete_records([TopicPartition(topic, 0, 30)]).values():
        future.result()
    with ingesting(settings) as raised:
        error = loss_of(raised)
    assert "offsets 10 to 29 of partition 0 were deleted before they were read" in error.message
    wait_until_counted_once(settings, first)
    with ingesting(accepting(settings, error)):
        wait_until_counted_once(settings, first + last)


def test_a_topic_that_takes_only_small_messages_is_named_and_waited_for(settings: Settings) -> None:
    archive, sent = settings.topic(topics.ARCHIVE), names(200)
    Admin(settings.kafka_connection).configure({archive: {"max.message.bytes": "200"}})
    wait_until(
        lambda: f"{archive} max.message.bytes is 200" in str(status(settings)["warnings"]), 30, "status warns of it"
    )
    with ingesting(settings) as raised:
        send(settings, 0, *sent)
        wait_until(lambda: status(settings)["topics"][settings.topic(topics.EVENTS)] == 200, 30, "it is lag")
        topic_setup.ensure(settings)
        wait_until_counted_once(settings, sent)
        assert raised == []


def test_messages_of_days_before_are_no_holes_in_the_input_of_a_day(settings: Settings) -> None:
    stamped_by_producers(settings)
    day_ms = now_ms() // DAY_MS * DAY_MS - DAY_MS
    send(settings, 0, *names(1), stamp_ms=now_ms() + YEARS_MS)  # the first one that was written since any moment
    before = [day_ms - 40 * HOUR_MS, day_ms - 2 * DAY_MS + HOUR_MS, day_ms - 20 * HOUR_MS, day_ms + HOUR_MS]
    times = [day_ms - 4 * DAY_MS, *sorted(before)]
    for time_ms in times:
        send(settings, 0, *names(1), stamp_ms=time_ms, time_ms=time_ms)
    rows = [_ROW | {"event_id": f"e{n}", "offset": n + 1, "log_time_ms": t, "time_ms": t} for n, t in enumerate(times)]
    wire = pa.Table.from_pylist(rows, schema=archive_schema.SCHEMA)
    store = FileStore(settings.archive)
    archive_worker.write_files(store, 0, 1, 1 + len(rows), wire)
    date = dt.datetime.fromtimestamp(day_ms / 1000, dt.UTC).date()
    ends = Admin(settings.kafka_connection).ends(settings.topic(topics.EVENTS), settings.event_partitions)
    proof = coverage.prove(settings, archive_files.files_around(store, date), date, ends)
    assert [hole for hole in proof.missing if hole.partition == 0] == []
    send(settings, 0, *names(1), stamp_ms=times[-1], time_ms=times[-1])
    ends = Admin(settings.kafka_connection).ends(settings.topic(topics.EVENTS), settings.event_partitions)
    proof = coverage.prove(settings, archive_files.files_around(store, date), date, ends)
    hole = 1 + len(rows)
    assert [str(h) for h in proof.missing if h.partition == 0] == [f"0/{hole} to {hole + 1}"]


def test_reconcile_waits_for_an_open_transaction_and_says_so(settings: Settings) -> None:
    foreign = Producer({"bootstrap.servers": settings.kafka, "transactional.id": f"{settings.namespace}foreign"})
    foreign.init_transactions(20 * PATIENCE)
    quick = settings.model_copy(update={"archive_flush_ms": 100})
    with ingesting(settings), running(archive_worker.ArchiveWorker(quick, "archive")):
        sent = names(10)
        send(settings, 0, *sent)
        wait_until_counted_once(settings, sent)
        foreign.begin_transaction()
        foreign.produce(settings.topic(topics.EVENTS), event("open"), b"open", 0)
        foreign.flush(20)
        archive = settings.topic(topics.ARCHIVE)
        wait_until(lambda: status(settings)["topics"][archive] == 0, 20, "all but the open transaction is archived")
        with pytest.raises(AdclickError, match="open since offset 10 of partition 0 holds back 1 messages"):
            coverage.wait_for_archive(settings, 0.5, lambda _: None)
        messages = list[str]()
        assert coverage.wait_for_archive(settings, 0.5, messages.append, force=True)[0] == len(sent)
        assert "left out: a transaction that is open since offset 10" in messages[-1]
        foreign.abort_transaction(20 * PATIENCE)


@pytest.mark.parametrize("how", ["moved back", "moved on", "moved with its copy", "group deleted"])
def test_group_offsets_changed_by_others_lose_and_repeat_nothing(
    settings: Settings, kafka: AdminClient, how: str
) -> None:
    topic, group = settings.topic(topics.EVENTS), settings.topic(topics.INGEST_GROUP)
    first, second = names(20), names(20)
    with ingesting(settings):
        send(settings, 0, *first)
        wait_until_counted_once(settings, first)
    send(settings, 0, *second)
    if how == "group deleted":
        kafka.delete_consumer_groups([group])[group].result()
    elif how == "moved with its copy":
        moved = [TopicPartition(topic, 0, 0), TopicPartition(settings.topic(topics.ARCHIVE), 0, 0)]
        kafka.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, moved)])[group].result()
    else:
        moved = [TopicPartition(topic, 0, 0 if how == "moved back" else 30)]
        kafka.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, moved)])[group].result()
    third = names(5)
    with ingesting(settings):
        send(settings, 0, *first, *third)
        wait_until_counted_once(settings, first + second + third)
