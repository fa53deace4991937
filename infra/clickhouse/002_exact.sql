-- What the nightly job computed. Rows of a run count only once `runs` names it the day's newest. A task that
-- Spark repeats writes the same rows again: read with FINAL.
CREATE TABLE IF NOT EXISTS {database}.exact_hours (
    time DateTime('UTC'), campaign_id UInt64, advertiser_id UInt64, ad_id UInt64, publisher_id UInt64,
    country LowCardinality(String), device LowCardinality(String), run_id String,
    impressions UInt64, clicks UInt64, conversions UInt64, spend_micros UInt64, late UInt64, late_events UInt64
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMMDD(time)
ORDER BY (run_id, campaign_id, time, advertiser_id, ad_id, publisher_id, country, device)
TTL time + INTERVAL 731 DAY
SETTINGS storage_policy = 'tiered', fsync_after_insert = 1, fsync_part_directory = 1, index_granularity = 1024,
    min_bytes_for_wide_part = 1073741824;

CREATE TABLE IF NOT EXISTS {database}.exact_days (
    time DateTime('UTC'), campaign_id UInt64, advertiser_id UInt64, ad_id UInt64, publisher_id UInt64,
    country LowCardinality(String), device LowCardinality(String), run_id String,
    impressions UInt64, clicks UInt64, conversions UInt64, spend_micros UInt64, late UInt64, late_events UInt64
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(time)
ORDER BY (run_id, campaign_id, time, advertiser_id, ad_id, publisher_id, country, device)
TTL time + INTERVAL 30 DAY TO VOLUME 'slow', time + INTERVAL 731 DAY
SETTINGS storage_policy = 'tiered', fsync_after_insert = 1, fsync_part_directory = 1, index_granularity = 1024,
    min_bytes_for_wide_part = 1073741824;

-- Why the stream and the exact numbers differ, per hour and all dimensions, one row a cause.
CREATE TABLE IF NOT EXISTS {database}.ledger (
    time DateTime('UTC'), campaign_id UInt64, advertiser_id UInt64, ad_id UInt64, publisher_id UInt64,
    country LowCardinality(String), device LowCardinality(String), run_id String, cause LowCardinality(String),
    impressions Int64, clicks Int64, conversions Int64, spend_micros Int64
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(time)
ORDER BY (run_id, campaign_id, time, advertiser_id, ad_id, publisher_id, country, device, cause)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- One row publishes a run: from then on it is the day's current one.
CREATE TABLE IF NOT EXISTS {database}.runs (
    date Date, run_id String, published_at DateTime64(3, 'UTC'), input_digest String, rows UInt64, copies UInt64,
    dimensions UInt64, drifted UInt64, alert UInt8, summary String
) ENGINE = MergeTree ORDER BY (date, published_at)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
