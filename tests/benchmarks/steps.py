"""`make bench-steps`: what each step of an event costs alone, in one thread of a warm process with nothing beside it: its floor.

CPU microseconds for each event, over a million events in batches as ingest takes them; flat JSON in `.bench/steps.json`. What a
step costs in the running product, beside seven other processes on two cores, is in the stages of `make bench`.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from pyarrow import parquet

from infra.clock import HOUR_MS, MINUTE_MS
from infra.columns import Values
from infra.console import App
from infra.redis import pack
from ingest import archive_files, archived, batch, blocks, partials, salting
from ingest.batch import Judged
from ingest.blocks import SourceRange
from ingest.decode import decode
from ingest.dedup import decision, segments
from ingest.dedup.digest import digest
from ingest.partials import Partials
from ingest.position import Position
from ingest.synthetic.generator import Spec, make
from stream import chunks
from stream.sinks import rows, warm
from stream.state import StageState
from tests.benchmarks.stack import save

EVENTS = int(os.environ.get("EVENTS") or 1_000_000)
_BATCH, _SHARDS = 100_000, 4
_START_MS = 1_795_132_800_000

_spent: dict[str, float] = {}


@contextmanager
def step(name: str) -> Iterator[None]:
    """Count CPU time under a name."""
    began = time.process_time()
    yield
    _spent[name] = _spent.get(name, 0.0) + time.process_time() - began


def main() -> None:
    """A million events through every step, once to warm up and once to measure."""
    span_ms = max(1, EVENTS * 3 // 1_000_000) * MINUTE_MS
    made = make(Spec(events=EVENTS, start_ms=_START_MS, span_ms=span_ms, late=0.001, malformed=0.0, future=0.0))
    lines = made.lines.to_list()
    once(lines[:_BATCH])
    _spent.clear()
    once(lines)
    report = {name: round(seconds / len(lines) * 1e6, 3) for name, seconds in _spent.items()}
    save("steps", {name.replace(": ", "_").replace(" ", "_"): cost for name, cost in report.items()})
    App(None, False, False, True).table(["step", "µs an event"], list(report.items()))


def once(lines: list[bytes | None]) -> None:
    """Ingest, archive and stream, in memory."""
    blocks_of: list[list[bytes]] = [[] for _ in range(_SHARDS)]
    known = segments.Generation(2_000_000)
    for start in range(0, len(lines), _BATCH):
        judged = ingest(Values.of(lines[start : start + _BATCH]), known, start)
        with step("ingest: sum by key"):
            folded = partials.fold_events([judged])
        with step("ingest: encode blocks"):
            of = salting.shard(folded, _SHARDS)
            laid = folded.take(np.argsort(of, kind="stable")).arrow()
            edges = [0, *np.cumsum(np.bincount(of, minlength=_SHARDS)).tolist()]
            ranges = (SourceRange(0, start, start + len(judged.offsets), None, False),)
            for shard in range(_SHARDS):
                part = laid.slice(edges[shard], edges[shard + 1] - edges[shard])
                blocks_of[shard] += blocks.encode(blocks.split(part), ranges, 0)
        with step("ingest: encode for the archive"):
            messages = list(blocks.encode(batch.wire(judged), ranges, 0))
        with step("archive: decode"):
            tables = [archived.off_wire(blocks.unpack(message)[0]) for message in messages]
        with step("archive: Parquet"):
            for table in tables:
                parquet.write_table(archived.readable(table, 0), io.BytesIO(), **archive_files.LAYOUT)
    stream(blocks_of)


def ingest(values: Values, known: segments.Generation, start: int) -> Judged:
    """A batch, decoded and deduplicated."""
    with step("ingest: decode JSON"):
        events = decode(values, np.full(len(values), _START_MS + HOUR_MS)).events
    size, offsets = len(events), np.arange(start, start + len(events))
    with step("ingest: digest ids (within decode)"):
        digest(events.ids)
    with step("ingest: ask filters and index"):
        found = np.full(size, segments.UNKNOWN, np.int64)
        known.opened().find(events.digests, found)
        for segment in known.closed:
            segment.filter.contains(events.digests)
    with step("ingest: remember ids"):
        added = segments.rows_of(events.digests, offsets)
        pack("RPUSH", "key", added.tobytes())
        known.opened().add(added)
    with step("ingest: order a full segment"):
        if known.opened().full:
            known.closed.append(known.opened().closed()[0])
            known.open = None
    flags, zeros = np.zeros(size, np.uint8), np.zeros(size, np.int64)
    first = decision.Decision(zeros - 1, np.zeros(size, np.bool_), {}, 0)
    at = Position(0)
    return Judged(events, offsets, zeros + _START_MS, flags, np.ones(size, np.uint32), flags, zeros, first, at, at)


def stream(blocks_of: list[list[bytes]]) -> None:
    """Minutes, hours and days of each shard."""
    for messages in blocks_of:
        stages = {name: StageState(grain, 1) for name, grain in (("minute", MINUTE_MS), ("hour", HOUR_MS))}
        for offset, message in enumerate(messages):
            with step("stream: decode blocks"):
                found, header = blocks.decode(message, "here")
                taken = Partials.of_arrow(found)
            with step("stream: sum by key"):
                stages["minute"].apply_block(offset, taken, header, "here")
            if offset % 5 == 4 or offset == len(messages) - 1:
                delta = flush(stages["minute"], "minute")
                for _, value in delta:
                    with step("stream: decode chunks"):
                        chunk, told = chunks.decode(value, "here")
                    stages["hour"].apply_chunk(stages["hour"].next_message, chunk, told, "here")
        flush(stages["hour"], "hour")


def flush(state: StageState, name: str) -> list[tuple[bytes, bytes]]:
    """What a stage does at a flush."""
    with step("stream: sum by key"):
        state.begin_flush()
        begun = state.flushing
    with step("stream: encode chunks"):
        written = list(chunks.encode(begun.delta, begun.header))
    with step("stream: hold rows"):
        changes = state.commit()
    if name == "minute":
        with step("stream: pack rows for Redis"):
            rows.pack(changes.delta)
    else:
        with step("stream: rows for ClickHouse"):
            for window in state.windows.values():
                warm.to_clickhouse(warm.in_key_order(window.whole()))
    return written


if __name__ == "__main__":
    main()
