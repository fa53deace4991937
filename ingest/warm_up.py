"""`python -m ingest.warm_up`: compile what is compiled, once, before the first worker would wait for it."""

from __future__ import annotations

import numpy as np
import polars as pl

from infra.columns import Values
from ingest import partials
from ingest.decode import decode
from ingest.dedup.bloom import GrowingBloom

_EVENT = (
    b'{"event_id":"a","event_type":"click","event_time":1,"campaign_id":1,"ad_id":1,"advertiser_id":1,'
    b'"publisher_id":1,"user_id":"u"}'
)


def main() -> None:
    """One event through every compiled function."""
    decoded = decode(Values.of([_EVENT]), np.ones(1, np.int64))
    known = GrowingBloom()
    known.add(decoded.digests)
    assert known.contains(decoded.digests).all()
    weighed = decoded.events.with_columns(weight=pl.lit(1, pl.UInt32), lateness=pl.lit(0, pl.UInt8))
    partials.merge([partials.fold_events(weighed)])


if __name__ == "__main__":
    main()
