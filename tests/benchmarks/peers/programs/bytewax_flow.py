"""Bytewax: an event-time window per key. argv: servers, topic, events, dedup."""

import sys
from datetime import UTC, datetime, timedelta

import bytewax.operators as op
import bytewax.operators.windowing as win
import orjson
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.operators.windowing import EventClock, TumblingWindower
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

SERVERS, TOPIC, EVENTS, DEDUP = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1"
TYPES = ("impression", "click", "conversion")
seen = 0
totals = [0, 0, 0, 0]


def parse(message) -> dict:
    """One event."""
    global seen
    if not seen:
        print("FIRST", flush=True)
    seen += 1
    return orjson.loads(message.value)


def is_new(known, event: dict):
    """State of one id: whether it has been seen."""
    return True, ([] if known else [event])


def add(sums: list[int], event: dict) -> list[int]:
    """The sums with one more event."""
    sums[TYPES.index(event["event_type"])] += 1
    sums[3] += event["cost_micros"]
    return sums


def merge(a: list[int], b: list[int]) -> list[int]:
    """Sums of two windows."""
    return [x + y for x, y in zip(a, b, strict=True)]


class _Totals(StatelessSinkPartition):
    def write_batch(self, items) -> None:
        for _, (_, sums) in items:
            totals[:] = merge(totals, sums)


class Totals(DynamicSink):
    """Adds up what comes out."""

    def build(self, *_):
        """One for the only worker."""
        return _Totals()


flow = Dataflow("peer")
events = op.map("parse", op.input("kafka", flow, KafkaSource([SERVERS], [TOPIC], tail=False, batch_size=20_000)), parse)
if DEDUP:
    by_id = op.key_on("by id", events, lambda e: e["event_id"])
    events = op.key_rm("ids off", op.stateful_flat_map("dedup", by_id, is_new))
keyed = op.key_on("key", events, lambda e: f"{e['campaign_id']}|{e['country']}|{e['device']}")
clock = EventClock(
    ts_getter=lambda e: datetime.fromtimestamp(e["event_time"] / 1000, UTC), wait_for_system_duration=timedelta(hours=3)
)
windower = TumblingWindower(align_to=datetime(2020, 1, 1, tzinfo=UTC), length=timedelta(minutes=1))
windowed = win.fold_window("sums", keyed, clock, windower, lambda: [0, 0, 0, 0], add, merge)
op.output("totals", windowed.down, Totals())

run_main(flow)
print("DONE" if seen == EVENTS else "MISSED", *totals, flush=True)
