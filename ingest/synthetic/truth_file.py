"""The truth on disk: NDJSON, one object a line, `kind` first. Plain enough for any tool to read.

{"kind":"count","minute":"2026-11-20T00:00:00Z","campaign_id":7,…,"stream_impressions":3,…,"batch_impressions":3,…}
{"kind":"dead","line":17,"reason":"bad-value"}
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ingest.synthetic.generator import Truth


def save(truth: Truth, path: Path) -> None:
    """Write the truth as NDJSON: counts first, then dead letters."""
    minute = pl.from_epoch("minute_ms", time_unit="ms").dt.strftime("%Y-%m-%dT%H:%M:%SZ").alias("minute")
    counts = truth.counts.sort("minute_ms", "campaign_id", "ad_id", "publisher_id", "country", "device")
    with path.open("wb") as out:
        counts.select(pl.lit("count").alias("kind"), minute, pl.exclude("minute_ms")).write_ndjson(out)
        truth.dead.select(pl.lit("dead").alias("kind"), pl.all()).write_ndjson(out)


def load(path: Path) -> Truth:
    """Read what `save` wrote."""
    raw = pl.read_ndjson(path, infer_schema_length=None)
    counts = raw.filter(pl.col("kind") == "count")
    minute = pl.col("minute").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="ms").dt.epoch("ms").alias("minute_ms")
    dead = raw.filter(pl.col("kind") == "dead")
    return Truth(
        counts.select(minute, pl.exclude("kind", "minute", "line", "reason")),
        dead.select("line", "reason")
        if "line" in raw.columns
        else pl.DataFrame(schema={"line": pl.Int64, "reason": pl.String}),
    )
