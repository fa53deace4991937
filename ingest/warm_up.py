"""`python -m ingest.warm_up`: compile what is compiled, once, before the first worker would wait for it."""

from __future__ import annotations

import numpy as np

from infra import record_batches
from infra.columns import PADDING, Values
from ingest import hex_ids, partials
from ingest.decode import decode
from ingest.dedup import segments
from ingest.dedup.decision import mark_copies_within

_EVENT = (
    b'{"event_id":"a","event_type":"click","event_time":1,"campaign_id":1,"ad_id":1,"advertiser_id":1,'
    b'"publisher_id":1,"user_id":"u"}'
)


def main() -> None:
    """One event through every compiled function."""
    found = decode(Values.of([_EVENT, b""]), np.ones(2, np.int64)).events
    Values.joined([found.ids, found.ids]).copied()
    known, offsets = segments.Open(1), np.zeros(1, np.int64)
    known.add(segments.rows_of(found.digests, offsets))
    known.find(found.digests, offsets)
    segments.scan(found.digests, offsets, [known.closed()[1]], offsets)
    mark_copies_within(found.digests, offsets, offsets, offsets)
    ids = hex_ids.packed(Values.of([b"0" * 32]))
    assert ids is not None
    hex_ids.spelled(ids)
    partials.merge([])
    record_batches.read(np.zeros(PADDING, np.uint8), 0, 0, 0, [])


if __name__ == "__main__":
    main()
