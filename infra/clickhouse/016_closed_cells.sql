-- What the stream counted of a closed window by campaign, after each flush that wrote it: the former value of a correction, which
-- stream_hours and stream_days replace. Rows are absolute sums of one shard, the same for the same version however often they are
-- sent. The row of `hours-sent` and `days-sent` is sent last: with it, all rows of its version are there.
CREATE TABLE IF NOT EXISTS {database}.closed_cells (
    tier LowCardinality(String), time DateTime('UTC'), campaign_id UInt64, advertiser_id UInt64, shard UInt16, version UInt64,
    impressions UInt64, clicks UInt64, conversions UInt64, spend_micros UInt64,
    changed UInt64, closing UInt8, at DateTime64(3, 'UTC') DEFAULT now64(3)
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMMDD(at)
ORDER BY (tier, time, campaign_id, advertiser_id, shard, version)
TTL toDateTime(at) + INTERVAL 66 DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, ttl_only_drop_parts = 1;
