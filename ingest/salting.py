"""Which block partition ("shard") a partial goes to: by campaign, or spread when the campaign is hot.

Readers sum over shards, so any assignment is correct; this one keeps a campaign together while it is small and no
shard overloaded when it is not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ingest.partials import Partials

MAX_SALTS = 20
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_BUCKET_BITS = 14


def assign_shards(partials: Partials, shards: int) -> npt.NDArray[np.uint16]:
    """The shard of each row. A campaign with more than 1/shards of the rows is salted by its other keys.

    Campaigns are counted in buckets: a small one that shares the bucket of a hot one is salted with it.
    """

    def column(name: str) -> npt.NDArray[np.uint64]:
        return partials[name].astype(np.uint64)

    spread = column("campaign_id") * _SPREAD
    bucket = (spread >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)
    base = (spread >> np.uint64(32)) % np.uint64(shards)
    rows = np.bincount(bucket, minlength=1 << _BUCKET_BITS)
    hot = np.flatnonzero((rows > max(64, len(partials) // shards))[bucket])
    if hot.size:
        salt = np.zeros(hot.size, np.uint64)
        for name in ("ad_id", "publisher_id", "country", "device"):
            salt = (salt ^ column(name)[hot]) * _SPREAD
            salt ^= salt >> np.uint64(29)
        base[hot] = (base[hot] + salt % np.uint64(min(MAX_SALTS, shards))) % np.uint64(shards)
    return base.astype(np.uint16)
