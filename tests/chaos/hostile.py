"""`make hostile`: a million hostile messages, and each is accepted, dropped as a copy, or dead-lettered, exactly once.

MESSAGES and SEED change it. Mutated and cut JSON, wrong types, huge and negative numbers, NaN, duplicate keys, deep nesting,
invalid UTF-8, zero bytes, nothing at all, and values of up to 5 MB.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from batch import coverage
from infra.clickhouse.client import ClickHouse
from infra.clickhouse.schema import apply_migrations
from infra.clock import HOUR_MS, now_ms
from infra.kafka import topic_setup, topics
from infra.kafka.consumers import read_to_end
from infra.kafka.event_producer import EventProducer
from infra.settings import Settings, resolve
from ingest.dead_letters import letters as dead_letters
from ingest.events import Rejection, judge_message
from tests.conftest import adclick
from tests.flow import Flow, flow
from tests.product import wait_until

CAMPAIGNS = 20
_CHUNK = 20_000
Value = bytes | None


def _event(rng: random.Random, now: int) -> dict[str, Any]:
    return {
        "event_id": f"h{rng.getrandbits(64):016x}", "event_type": rng.choice(("impression", "click", "conversion")),
        "event_time": now - rng.randrange(60_000), "campaign_id": rng.randrange(CAMPAIGNS), "ad_id": rng.randrange(5),
        "advertiser_id": 1, "publisher_id": rng.randrange(9), "country": "DE", "device": "ctv", "user_id": "u1",
        "cost_micros": rng.randrange(1000),
    }  # fmt: skip


def _flip(value: bytes, rng: random.Random) -> bytes:
    changed = bytearray(value)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] = rng.getrandbits(8)
    return bytes(changed)


def _wrong(event: dict[str, Any], rng: random.Random) -> bytes:
    odd: list[Any] = [
        None,
        True,
        [],
        {},
        "",
        "x" * 200,
        -1,
        2**63,
        10**40,
        1.0,
        1e300,
        "1",
        "\x00",
        float("nan"),
        float("-inf"),
    ]
    return json.dumps(event | {rng.choice(list(event)): rng.choice(odd)}).encode()


def _twice(event: dict[str, Any], rng: random.Random) -> bytes:
    name = rng.choice(list(event))
    again = json.dumps({name: rng.choice([event[name], 7, "x"])})
    return (json.dumps(event)[:-1] + "," + again[1:]).encode()


def _deep(event: dict[str, Any], rng: random.Random) -> bytes:
    depth = rng.choice([5, 100, 500, 5_000, 20_000])
    return (json.dumps(event)[:-1] + ',"x":' + "[" * depth + "]" * depth + "}").encode()


def _insert(event: dict[str, Any], rng: random.Random) -> bytes:
    value = json.dumps(event).encode()
    at = rng.randrange(len(value))
    return value[:at] + rng.choice([b"\xff", b"\xc3", b"\x00", b"\xed\xa0\x80", b"\\u0000", b"\\", b'"']) + value[at:]


def _shape(event: dict[str, Any], rng: random.Random) -> bytes:
    seconds = event["event_time"] / 1000
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    odd = [event["event_time"] + 10 * HOUR_MS, 0, stamp, stamp + "Z", stamp + "+00:00", stamp + ".5Z", stamp + "+99:00"]
    changed = event | {"event_time": rng.choice(odd), "note": rng.choice(["ü", "😀" * 50, "\\"])}
    return json.dumps(changed, indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.5).encode()


def _garbage(_: dict[str, Any], rng: random.Random) -> Value:
    return rng.choice([None, b"", b" ", b"null", b"[]", b"7", rng.randbytes(rng.randrange(1, 300)), b"\x00" * 50])


def _large(event: dict[str, Any], rng: random.Random) -> bytes:
    size = rng.choices([66_000, 300_000, 5_000_000], weights=[100, 20, 1])[0]
    return json.dumps(event | {"note": "x" * size}).encode()


def _plain(event: dict[str, Any], _: random.Random) -> bytes:
    return json.dumps(event).encode()


_KINDS: tuple[tuple[Callable[[dict[str, Any], random.Random], Value], float], ...] = (
    (_plain, 30), (lambda e, rng: _flip(_plain(e, rng), rng), 15), (_wrong, 12), (_twice, 8), (_deep, 0.5), (_insert, 8),
    (_shape, 8), (_garbage, 6), (_large, 0.1), (lambda e, rng: _plain(e, rng)[: rng.randrange(300)], 8),
)  # fmt: skip


def messages(count: int, seed: int) -> Iterator[tuple[bytes | None, Value]]:
    """(key, value) of each; about one in twelve is sent a second time."""
    rng, now = random.Random(seed), now_ms()
    kinds, weights = [k for k, _ in _KINDS], [w for _, w in _KINDS]
    produced = 0
    while produced < count:
        event = _event(rng, now)
        value = rng.choices(kinds, weights)[0](event, rng)
        key = rng.choice([event["event_id"].encode()] * 9 + [None])
        for _ in range(min(2 if key and rng.random() < 0.08 else 1, count - produced)):
            produced += 1
            yield key, value


def send(settings: Settings, count: int, seed: int) -> None:
    """Send them all."""
    producer, topic = EventProducer(settings.kafka_connection), settings.topic(topics.EVENTS)
    keys: list[bytes | None] = []
    values: list[Value] = []
    for key, value in messages(count, seed):
        keys.append(key)
        values.append(value)
        if len(keys) == _CHUNK:
            producer.send(topic, keys, values)
            keys, values = [], []
    producer.send(topic, keys, values)
    assert producer.flush(120) == 0
    assert not producer.failed


def account(running: Flow, count: int) -> dict[str, int]:
    """Count where the messages went; raises AssertionError when one went nowhere, twice, or where it should not."""
    settings = running.settings
    sent: dict[tuple[int, int], str] = {}
    for p in range(settings.event_partitions):
        for m in read_to_end(settings.kafka_connection, settings.topic(topics.EVENTS), p):
            judged = judge_message(m.value(), m.timestamp()[1])
            sent[p, m.offset()] = judged.reason.value if isinstance(judged, Rejection) else "valid"
    assert len(sent) == count, f"{count} were sent, {len(sent)} are in the topic"
    dead: dict[tuple[int, int], str] = {}
    for letter in dead_letters.read_letters(settings):
        _, partition, offset = letter.headers["source"].rsplit("/", 2)
        place = int(partition), int(offset)
        assert place not in dead, f"{place} was dead-lettered twice"
        dead[place] = letter.headers["reason"]
    rows = pl.concat(
        [
            pl.read_parquet(f, columns=["partition", "offset", "event_id", "campaign_id", "time_ms", "decision"])
            for f in Path(settings.archive).rglob("*.parquet")
        ]
    ).with_columns(pl.col("decision").cast(pl.String))
    rows = rows.unique(["partition", "offset"])
    archived = dict(zip(rows.select("partition", "offset").rows(), rows["decision"].to_list(), strict=True))
    for place, verdict in sent.items():
        # What came too late is dead-lettered, and archived for the nightly run.
        outcomes = [outcome[place] for outcome in (dead, archived) if place in outcome]
        ok = outcomes == [verdict] if verdict != "valid" else outcomes in (["counted"], ["copy"], ["too-late"] * 2)
        assert ok, f"{place} is {verdict}, and became {outcomes}"
    counted = rows.filter(pl.col("decision") == "counted")
    # Mutated ids come under other keys, too: copies are copies within a partition.
    assert counted.select("partition", "event_id").n_unique() == counted.height
    _wait_until_counted_is_shown(running, counted.filter(pl.col("campaign_id") < CAMPAIGNS)["time_ms"])
    return {"sent": count} | dict(Counter(archived.values()) | Counter(dead.values()))


def _wait_until_counted_is_shown(running: Flow, times_ms: pl.Series) -> None:
    """Wait until the answers add up to what was counted. A mutated time may be years ago, and first in its partition."""
    start_ms = now_ms() - 20 * HOUR_MS
    expected = int((times_ms >= start_ms).sum())

    def shown() -> int:
        return running.shown_events(tuple(range(CAMPAIGNS)), start_ms)

    wait_until(lambda: shown() == expected, 60, lambda: f"{expected} events must be shown, {shown()} are")


def run(settings: Settings, folder: Path, count: int, seed: int) -> dict[str, int]:
    """Send, wait until all is read and archived, and account for it. No worker may have died."""
    with flow(settings, folder, events=10) as running:
        for name in ("ingest-0", "archive-0", "stream-0"):
            running.start(name)
        send(settings, count, seed)
        coverage.wait_for_archive(settings, 60 + count / 2_000, lambda _: None)
        counts = account(running, count)
        assert all(worker.poll() is None for worker in running.workers.values()), "a worker died"
        return counts


def main() -> None:
    """Read the environment and run on a stack of our own."""
    count = int(os.environ.get("MESSAGES") or 1_000_000)
    seed = int(os.environ.get("SEED") or now_ms() % 100_000)
    print(f"seed {seed}: {count:,} hostile messages", flush=True)
    with tempfile.TemporaryDirectory(prefix="adclick-hostile-") as folder:
        stack = Path(folder) / "stack"
        result = adclick(
            "up",
            "--detach",
            "--dir",
            str(stack),
            "--ingest-workers",
            "0",
            "--stream-workers",
            "0",
            "--notify-workers",
            "0",
        )
        assert result.returncode == 0, result.stderr
        try:
            # The stack has an archive worker of its own, for the topics without a namespace.
            own = {"archive": str(Path(folder) / "archive"), "namespace": "hostile_"}
            settings = resolve(str(stack)).settings.model_copy(update=own)
            topic_setup.ensure(settings)
            apply_migrations(ClickHouse(settings.clickhouse, settings.database))
            began = time.monotonic()
            counts = run(settings, Path(folder), count, seed)
            print(f"{time.monotonic() - began:.0f} s; " + ", ".join(f"{k} {n:,}" for k, n in sorted(counts.items())))
        except AssertionError as error:
            print(f"failed: {error}\nrepeat it with: make hostile MESSAGES={count} SEED={seed}")
            sys.exit(1)
        finally:
            adclick("down", "--dir", str(stack))
    print("accepted + duplicates + dead = sent, exactly")


if __name__ == "__main__":
    main()
