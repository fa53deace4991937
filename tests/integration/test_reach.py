"""Registers in ClickHouse are those of the users of counted events, whatever happens to the process that writes them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from infra.clickhouse.client import ClickHouse
from infra.clickhouse.schema import apply_migrations
from infra.clock import DAY_MS, HOUR_MS, now_ms
from infra.columnar.columns import Values
from infra.columnar.siphash import siphash
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.event_producer import EventProducer
from infra.redis.client import Redis
from infra.retries import WAITS
from infra.settings import Settings
from ingest import blocks
from ingest.archive import schema as archive_schema
from ingest.archive.schema import Decision
from query.reach_progress import is_behind
from stream.reach.progress import Progress, read_progress
from stream.reach.writer import ReachWriter
from tests.flow import worker_environment
from tests.product import wait_until
from tests.unit.test_reach import greatest

MIDNIGHT = now_ms() // DAY_MS * DAY_MS
WRITE_EVERY_S = 0.2
PROGRAM = f"""
from infra.settings import resolve
from stream.reach.writer import ReachWriter
ReachWriter(resolve().settings, write_every_s={WRITE_EVERY_S}).run()
"""
Key = tuple[int, int, int]


class Events:
    """Blocks of `ad-archive`, and the registers of their users by hour, campaign and advertiser."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._producer = settings, EventProducer(settings.kafka_connection)
        self._rng, self._users, self._offset = np.random.default_rng(5), defaultdict[Key, list[int]](list), 0

    def send(self, count: int) -> None:
        """Send a block of the last hours of a day and the first ones of the next. A tenth of the events have no user, a tenth are not
        counted."""
        rng = self._rng
        names = [b"user-%d" % n for n in rng.integers(0, 3 * count, count).tolist()]
        hashes = siphash(Values.of(names), bytes(range(16)))[:, 0] >> np.uint64(1)
        campaigns = rng.integers(1, 6, count)
        numbers = {name: np.zeros(count, np.int64) for name in archive_schema.SCHEMA.names if name != "event_id"} | {
            "offset": np.arange(self._offset, self._offset + count),
            "time_ms": MIDNIGHT + rng.integers(-2 * HOUR_MS, 2 * HOUR_MS, count),
            "campaign_id": campaigns, "advertiser_id": 1 + campaigns % 2, "user": hashes.astype(np.int64),
            "decision": np.where(rng.random(count) < 0.9, Decision.COUNTED, rng.integers(1, len(Decision), count)),
        }  # fmt: skip
        missing = {"user": rng.random(count) < 0.1, "copy_of": np.ones(count, np.bool_)}
        rows = archive_schema.encode_archived(Values.of([b"%032x" % n for n in range(count)]), numbers, missing)
        ranges = (blocks.SourceRange(0, self._offset, self._offset + count, None, False),)
        values = list(blocks.encode_block(blocks.split_rows(rows), ranges, 0))
        self._producer.send(self._settings.topic(topics.ARCHIVE), [None] * len(values), values)
        assert self._producer.flush(30) == 0
        self._offset += count
        for i in np.flatnonzero((numbers["decision"] == Decision.COUNTED) & ~missing["user"]).tolist():
            hour = int(numbers["time_ms"][i]) // HOUR_MS * HOUR_MS
            self._users[hour, int(campaigns[i]), 1 + int(campaigns[i]) % 2].append(int(hashes[i]))

    def registers(self, period_ms: int = HOUR_MS) -> dict[Key, list[int]]:
        """The greatest coupon of each register."""
        users = defaultdict[Key, list[int]](list)
        for (hour, campaign, advertiser), hashes in self._users.items():
            users[hour // period_ms * period_ms, campaign, advertiser] += hashes
        return {key: greatest(hashes) for key, hashes in users.items()}


def stored_registers(settings: Settings, table: str) -> dict[Key, list[int]]:
    rows = ClickHouse(settings.clickhouse, settings.database).rows(
        "SELECT toUnixTimestamp(time), campaign_id, advertiser_id, max(coupon) AS greatest"
        f" FROM {settings.database}.{table} ARRAY JOIN coupons AS coupon"
        " GROUP BY time, campaign_id, advertiser_id, bitAnd(coupon, 8191) ORDER BY bitAnd(greatest, 8191)"
    )
    stored = defaultdict[Key, list[int]](list)
    for start_s, campaign, advertiser, coupon in rows:
        stored[start_s * 1000, campaign, advertiser].append(coupon)
    return dict(stored)


def wait_until_exact(settings: Settings, events: Events) -> None:
    for table, period_ms in (("stream_reach_hours", HOUR_MS), ("stream_reach_days", DAY_MS)):
        expected = events.registers(period_ms)
        wait_until(lambda t=table, e=expected: stored_registers(settings, t) == e, 20, f"{table} is exact")


@contextlib.contextmanager
def writing(settings: Settings) -> Iterator[None]:
    writer = ReachWriter(settings, write_every_s=WRITE_EVERY_S)
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        yield
    finally:
        writer.stop()
        thread.join()


def test_registers_are_exact_after_the_process_ends_between_insert_and_commit(
    settings: Settings, tmp_path: Path
) -> None:
    # The next owner of its partitions need not wait long.
    settings, events = settings.model_copy(update={"session_timeout_ms": 2_500}), Events(settings)
    variables = worker_environment(settings, "stream-0", ADCLICK_FAULT="kill@reach.written:2")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM], env=variables, stderr=log)
    for _ in range(5):
        events.send(2_000)

    def has_ended() -> bool:
        events.send(50)
        return process.poll() is not None

    wait_until(has_ended, 20, "the fault point is reached")
    assert process.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    with writing(settings):
        wait_until_exact(settings, events)


def test_a_missing_table_is_waited_for_one_made_again_is_filled_and_messages_deleted_unread_are_passed_over(
    settings: Settings,
) -> None:
    events, client = Events(settings), ClickHouse(settings.clickhouse, settings.database)

    def drop(table: str) -> None:
        client.command(f"DROP TABLE {settings.database}.{table} SYNC")

    redis = Redis(settings.redis)

    def progress() -> list[Progress | None]:
        return read_progress(redis, settings.key_prefix, settings.event_partitions)

    with writing(settings):
        events.send(500)
        wait_until_exact(settings, events)
        wait_until(lambda: not is_behind(progress(), now_ms()), 20, "all partitions are known to be read to their ends")
        assert not any(each.holes for each in progress() if each)
        drop("stream_reach_hours")
        events.send(500)
        wait_until(lambda: "reach" in WAITS.reasons(), 20, "it waits")
        apply_migrations(client)
        wait_until_exact(settings, events)
        wait_until(lambda: not WAITS.reasons(), 20, "it waits no longer")
        # So soon that no insert fails.
        drop("stream_reach_days")
        apply_migrations(client)
        events.send(10)
        wait_until_exact(settings, events)
    kafka, topic = AdminClient({"bootstrap.servers": settings.kafka}), settings.topic(topics.ARCHIVE)
    lost = Events(settings)
    lost.send(500)
    ends = Admin(settings.kafka_connection).ends(topic, settings.event_partitions)
    for future in kafka.delete_records([TopicPartition(topic, p, end) for p, end in enumerate(ends)]).values():
        future.result()
    began_ms = now_ms()
    with writing(settings):
        events.send(500)
        wait_until_exact(settings, events)
        wait_until(lambda: all(each and each.read_ms > began_ms for each in progress()), 20, "progress is published")
    assert any(each.holes for each in progress() if each)
