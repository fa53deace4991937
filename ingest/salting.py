"""Which block partition ("shard") a partial goes to: by campaign, or spread when the campaign is hot.

Readers sum over shards, so any assignment is correct; this one keeps a campaign together while it is small and no
shard overloaded when it is not.
"""

from __future__ import annotations

import polars as pl

MAX_SALTS = 20


def shard(partials: pl.DataFrame, shards: int) -> pl.Series:
    """The shard of each row. A campaign with more than 1/shards of the batch's rows is salted by its other keys."""
    base = pl.col("campaign_id").hash(seed=0) % shards
    hot = pl.len().over("campaign_id") > max(64, partials.height // shards)
    salt = pl.struct("ad_id", "publisher_id", "country", "device").hash(seed=0) % min(MAX_SALTS, shards)
    return partials.select(pl.when(hot).then((base + salt) % shards).otherwise(base).cast(pl.UInt32)).to_series()
