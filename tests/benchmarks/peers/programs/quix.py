"""Quix Streams: a tumbling window over a stream keyed by what is counted. argv: servers, topic, events, dedup, folder."""

import sys
from datetime import timedelta

from quixstreams import Application

SERVERS, TOPIC, EVENTS, DEDUP, FOLDER = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1", sys.argv[5]
TYPES = ("impression", "click", "conversion")
seen = 0
totals: dict[tuple[object, int], list[int]] = {}


def is_new(event: dict, state) -> bool:
    """Remembers ids beside the key's other state."""
    if state.exists(event["event_id"]):
        return False
    state.set(event["event_id"], 1)
    return True


def first(event: dict) -> list[int]:
    """The sums of one event."""
    return add([0, 0, 0, 0], event)


def add(sums: list[int], event: dict) -> list[int]:
    """The sums with one more event."""
    sums[TYPES.index(event["event_type"])] += 1
    sums[3] += event["cost_micros"]
    return sums


def note(event: dict) -> None:
    """Count what was read."""
    global seen
    if not seen:
        print("FIRST", flush=True)
    seen += 1


def keep(row: dict, key, _timestamp, _headers) -> None:
    """The newest sums of a window."""
    totals[key, row["start"]] = row["value"]
    if seen == EVENTS:
        print("DONE", *(sum(column) for column in zip(*totals.values(), strict=True)), flush=True)


app = Application(
    broker_address=SERVERS,
    consumer_group=f"peer-{FOLDER[-6:]}",
    auto_offset_reset="earliest",
    state_dir=FOLDER,
    loglevel="ERROR",
)
source = app.topic(TOPIC, value_deserializer="json", timestamp_extractor=lambda v, *_: int(v["event_time"]))
stream = app.dataframe(source).update(note)
if DEDUP:
    stream = stream.filter(is_new, stateful=True)
# Lateness is judged by key and partition: with less grace, a fast catch-up drops events.
window = stream.tumbling_window(timedelta(minutes=1), grace_ms=timedelta(hours=3))
window.reduce(reducer=add, initializer=first).current().update(keep, metadata=True)
app.run()
