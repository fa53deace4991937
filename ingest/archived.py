"""The archived event: what `ad-archive` carries and the Parquet files hold. Owned here, read by batch and replay."""

from __future__ import annotations

from enum import IntEnum

import polars as pl

from ingest import events

GROUP_FOLDER = "event_date={date}/hour={hour:02d}"


class Decision(IntEnum):
    """What the stream did with a valid event."""

    COUNTED = 0
    COPY = 1
    TOO_LATE = 2
    SHED = 3
    DOUBT = 4  # its id may be among those that Redis lost and the topic no longer holds: taken for a copy


DECISIONS = tuple(d.name.lower().replace("_", "-") for d in Decision)

# On the wire: codes. `user` is the keyed hash of user_id.
WIRE: dict[str, pl.DataType] = {
    "offset": pl.Int64(),
    "log_time_ms": pl.Int64(),
    "event_id": pl.String(),
    "event_type": pl.UInt8(),
    "time_ms": pl.Int64(),
    "campaign_id": pl.Int64(),
    "ad_id": pl.Int64(),
    "advertiser_id": pl.Int64(),
    "publisher_id": pl.Int64(),
    "country": pl.UInt16(),
    "device": pl.UInt8(),
    "user": pl.Int64(),
    "cost_micros": pl.Int64(),
    "decision": pl.UInt8(),
    "weight": pl.UInt32(),
    "lateness": pl.UInt8(),
    "copy_of": pl.Int64(),
}


ARROW = pl.DataFrame(schema=WIRE).to_arrow(compat_level=pl.CompatLevel.oldest()).schema


def readable(frame: pl.DataFrame, partition: int) -> pl.DataFrame:
    """Wire rows as they are stored: names instead of codes, and the source partition beside the offset."""
    names = {
        "event_type": events.EVENT_TYPES,
        "country": events.COUNTRIES,
        "device": events.DEVICES,
        "decision": DECISIONS,
    }
    return frame.select(
        pl.lit(partition, dtype=pl.Int32).alias("partition"),
        *(
            pl.col(c).replace_strict(range(len(names[c])), names[c], return_dtype=pl.Categorical)
            if c in names
            else pl.col(c)
            for c in WIRE
        ),
    )
