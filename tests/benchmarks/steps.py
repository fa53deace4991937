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

from infra.cli.app import App
from infra.clock import HOUR_MS, MINUTE_MS
from infra.columnar.columns import Values
from infra.redis.commands import pack_command
from ingest import blocks, judge, partials, salting
from ingest.archive import files as archive_files
from ingest.archive import schema as archive_schema
from ingest.blocks import SourceRange
from ingest.decoding.decode import decode_events
from ingest.dedup import copies, segments
from ingest.dedup.digest import digest_ids
from ingest.dedup.registry import Lookups
from ingest.judge import JudgedBatch
from ingest.partials import Partials
from ingest.position import Position
from ingest.synthetic.generator import Spec, generate_events
from stream import chunks
from stream.hot import cell_format
from stream.reach.additions import Additions
from stream.reach.writer import decode_coupons
from stream.warm import writer
from tests.benchmarks.stack import save
from tests.stages import Stage

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
    made = generate_events(
        Spec(events=EVENTS, start_ms=_START_MS, span_ms=span_ms, late=0.001, malformed=0.0, future=0.0)
    )
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
    known, additions = segments.Generation(2_000_000), Additions(HOUR_MS)
    for start in range(0, len(lines), _BATCH):
        judged = ingest(Values.of(lines[start : start + _BATCH]), known, start)
        with step("ingest: sum by key"):
            folded = partials.fold_events([judged])
        with step("ingest: encode blocks"):
            of = salting.assign_shards(folded, _SHARDS)
            laid = folded.without_zero_sums().take(np.argsort(of, kind="stable")).arrow()
            edges = [0, *np.cumsum(np.bincount(of, minlength=_SHARDS)).tolist()]
            ranges = (SourceRange(0, start, start + len(judged.offsets), None, False),)
            for shard in range(_SHARDS):
                part = laid.slice(edges[shard], edges[shard + 1] - edges[shard])
                blocks_of[shard] += blocks.encode_block(blocks.split_rows(part), ranges, 0)
        with step("ingest: encode for the archive"):
            messages = list(blocks.encode_block(judge.archive_parts(judged), ranges, 0))
        with step("reach: decode"):
            users = [decode_coupons(message, "here")[0] for message in messages]
        with step("reach: raise registers"):
            for columns in users:
                assert additions.add(*columns) == len(columns[0])
        with step("archive: decode"):
            tables = [archive_schema.decode_archived(blocks.unpack_rows(message)[0]) for message in messages]
        with step("archive: Parquet"):
            for table in tables:
                parquet.write_table(archive_schema.stored_rows(table, 0), io.BytesIO(), **archive_files.LAYOUT)
    with step("reach: rows for ClickHouse"):
        additions.take()
    stream(blocks_of)


def ingest(values: Values, known: segments.Generation, start: int) -> JudgedBatch:
    """A batch, decoded and deduplicated."""
    with step("ingest: decode JSON"):
        events = decode_events(values, np.full(len(values), _START_MS + HOUR_MS)).events
    size, offsets = len(events), np.arange(start, start + len(events))
    with step("ingest: digest ids (within decode)"):
        digest_ids(events.ids)
    with step("ingest: ask filters and index"):
        found = np.full(size, segments.UNKNOWN, np.int64)
        known.opened().find(events.digests, found)
        for segment in known.closed:
            segment.filter.contains(events.digests)
    with step("ingest: remember ids"):
        added = segments.segment_rows(events.digests, offsets)
        pack_command("RPUSH", "key", added.tobytes())
        known.opened().add(added)
    with step("ingest: order a full segment"):
        if known.opened().full:
            known.closed.append(known.opened().closed()[0])
            known.open = None
    flags, zeros = np.zeros(size, np.uint8), np.zeros(size, np.int64)
    first = copies.CopyDecisions(zeros - 1, np.zeros(size, np.bool_), {}, Lookups())
    at = Position(0)
    return JudgedBatch(events, offsets, zeros + _START_MS, flags, np.ones(size, np.uint32), flags, zeros, first, at, at)


def stream(blocks_of: list[list[bytes]]) -> None:
    """Minutes, hours and days of each shard."""
    for messages in blocks_of:
        stages = {name: Stage(grain, 1) for name, grain in (("minute", MINUTE_MS), ("hour", HOUR_MS))}
        for offset, message in enumerate(messages):
            with step("stream: decode blocks"):
                found, header = blocks.decode_block(message, "here")
                taken = Partials.of_arrow(found)
            with step("stream: sum by key"):
                stages["minute"].apply_block(offset, taken, header, "here")
            if stages["minute"].intake.may_flush and (offset % 5 == 4 or offset == len(messages) - 1):
                delta = flush(stages["minute"], "minute")
                for _, value in delta:
                    with step("stream: decode chunks"):
                        chunk, told = chunks.decode(value, "here")
                    stages["hour"].apply_chunk(stages["hour"].next_message, chunk, told, "here")
        flush(stages["hour"], "hour")


def flush(stage: Stage, name: str) -> list[tuple[bytes, bytes]]:
    """What a stage does at a flush."""
    with step("stream: sum by key"):
        begun = stage.begin_flush()
    with step("stream: encode chunks"):
        written = list(chunks.encode(begun.delta, begun.header))
    with step("stream: hold rows"):
        published = stage.commit()
    if name == "minute":
        with step("stream: pack rows for Redis"):
            cell_format.pack(published.delta)
    else:
        with step("stream: rows for ClickHouse"):
            for window in stage.windows.values():
                writer.to_clickhouse(writer.in_key_order(window.whole()))
    return written


if __name__ == "__main__":
    main()
