"""Compile what ingest has compiled, once, before the first worker would wait for it."""

from __future__ import annotations

import numpy as np

from infra.columnar import hex_ids
from infra.columnar.columns import PADDING, Values
from infra.kafka import record_batches
from ingest import partials
from ingest.decoding.decode import decode_events
from ingest.dedup import segments
from ingest.dedup.copies import mark_copies_within

_EVENT = (
    b'{"event_id":"a","event_type":"click","event_time":1,"campaign_id":1,"ad_id":1,"advertiser_id":1,'
    b'"publisher_id":1,"user_id":"u"}'
)


def main() -> None:
    """One event through every compiled function."""
    events = decode_events(Values.of([_EVENT, b""]), np.ones(2, np.int64)).events
    Values.joined([events.ids, events.ids]).copied()
    known, offsets = segments.OpenSegment(1), np.zeros(1, np.int64)
    known.add(segments.segment_rows(events.digests, offsets))
    known.find(events.digests, offsets)
    segments.scan_windows(events.digests, offsets, [known.closed()[1]], offsets)
    mark_copies_within(events.digests, offsets, offsets, offsets)
    ids = hex_ids.pack_hex(Values.of([b"0" * 32]))
    assert ids is not None
    hex_ids.spell_hex(ids)
    partials.merge_partials([])
    record_batches.read_batches(np.zeros(PADDING, np.uint8), 0, 0, 0, [])
