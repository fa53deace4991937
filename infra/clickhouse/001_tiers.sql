-- Rows are absolute sums of one shard; a row written again replaces itself, and the version (the sequence number of
-- the flush, decision 0008) keeps an older write from winning. Read with FINAL, then sum over shards. A question is about a
-- campaign's few hundred rows of a day, so granules and blocks are small.
CREATE TABLE IF NOT EXISTS {database}.stream_hours (
    time DateTime('UTC'), campaign_id UInt64, advertiser_id UInt64, ad_id UInt64, publisher_id UInt64,
    country LowCardinality(String), device LowCardinality(String), shard UInt16,
    impressions UInt64, clicks UInt64, conversions UInt64, spend_micros UInt64,
    late UInt64, late_events UInt64, sampled UInt64, changed UInt64, version UInt64
) ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(time)
ORDER BY (campaign_id, time, advertiser_id, ad_id, publisher_id, country, device, shard)
TTL time + INTERVAL 32 DAY
SETTINGS storage_policy = 'tiered', fsync_after_insert = 1, fsync_part_directory = 1, index_granularity = 1024,
    min_bytes_for_wide_part = 1073741824;

CREATE TABLE IF NOT EXISTS {database}.stream_days (
    time DateTime('UTC'), campaign_id UInt64, advertiser_id UInt64, ad_id UInt64, publisher_id UInt64,
    country LowCardinality(String), device LowCardinality(String), shard UInt16,
    impressions UInt64, clicks UInt64, conversions UInt64, spend_micros UInt64,
    late UInt64, late_events UInt64, sampled UInt64, changed UInt64, version UInt64
) ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(time)
ORDER BY (campaign_id, time, advertiser_id, ad_id, publisher_id, country, device, shard)
TTL time + INTERVAL 30 DAY TO VOLUME 'slow', time + INTERVAL 731 DAY
SETTINGS storage_policy = 'tiered', fsync_after_insert = 1, fsync_part_directory = 1, index_granularity = 1024,
    min_bytes_for_wide_part = 1073741824;

-- How far each shard has written a tier: every window that ends at or before watermark_ms is in it, and no event is accepted
-- any more for one that ends at or before border_ms.
CREATE TABLE IF NOT EXISTS {database}.tier_borders (
    tier LowCardinality(String), shard UInt16, border_ms UInt64, watermark_ms UInt64
) ENGINE = ReplacingMergeTree(watermark_ms) ORDER BY (tier, shard)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
