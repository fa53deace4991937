"""Faust as its documentation has it: an agent and a tumbling table. argv: servers, topic, events, dedup (0 or 1)."""

import asyncio
import os
import sys
from datetime import timedelta

import faust

SERVERS, TOPIC, EVENTS, DEDUP = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1"
TYPES = ("impression", "click", "conversion")


class Event(faust.Record, serializer="json"):
    """An event; what is not named is ignored."""

    event_id: str
    event_type: str
    event_time: float
    campaign_id: int
    country: str
    device: str
    cost_micros: int


app = faust.App(
    f"peer{os.getpid()}", broker=f"kafka://{SERVERS}", store="memory://", web_enabled=False, topic_partitions=4
)
topic = app.topic(TOPIC, value_type=Event)
# Windows expire by the clock, and these events are hours old.
counts = app.Table("counts", default=lambda: [0, 0, 0, 0]).tumbling(60, expires=timedelta(days=3650))
counts = counts.relative_to_field(Event.event_time)
known = app.Table("known", default=bool)
seen = 0


@app.agent(topic)
async def count(events):
    """One event at a time."""
    global seen
    async for event in events:
        if not seen:
            os.write(1, b"FIRST\n")  # Faust redirects print
        seen += 1
        if not DEDUP or not known[event.event_id]:
            if DEDUP:
                known[event.event_id] = True
            event.event_time /= 1000
            key = f"{event.campaign_id}|{event.country}|{event.device}"
            sums = list(counts[key].value())
            sums[TYPES.index(event.event_type)] += 1
            sums[3] += event.cost_micros
            counts[key] = sums
        if seen == EVENTS:
            totals = [sum(column) for column in zip(*counts.table.values(), strict=True)]
            os.write(1, f"DONE {' '.join(map(str, totals))}\n".encode())
            await asyncio.sleep(60)


if __name__ == "__main__":
    sys.argv[1:] = ["worker", "--loglevel", "error"]
    app.main()
