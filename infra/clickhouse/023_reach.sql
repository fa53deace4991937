-- Users of a campaign's hours, as HyperLogLog: a coupon is a register | rank << 13. A row adds coupons to what is there, and one that
-- is written twice changes nothing. Only the greatest coupon of a register counts.
CREATE TABLE IF NOT EXISTS {database}.stream_reach_hours (
    time DateTime('UTC'), campaign_id UInt64, advertiser_id UInt64,
    coupons SimpleAggregateFunction(groupUniqArrayArray, Array(UInt32))
) ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMMDD(time)
ORDER BY (campaign_id, time, advertiser_id)
TTL time + INTERVAL 32 DAY TO VOLUME 'slow', time + INTERVAL 66 DAY
SETTINGS storage_policy = 'tiered', fsync_after_insert = 1, fsync_part_directory = 1, index_granularity = 1024,
    min_bytes_for_wide_part = 1073741824, min_parts_to_merge_at_once = 10, min_age_to_force_merge_seconds = 7200,
    min_age_to_force_merge_on_partition_only = 1;

-- A coupon has 19 bits: T64 halves the space. It costs merges more, so hours, which are merged all the time, go without.
CREATE TABLE IF NOT EXISTS {database}.stream_reach_days (
    time DateTime('UTC'), campaign_id UInt64, advertiser_id UInt64,
    coupons SimpleAggregateFunction(groupUniqArrayArray, Array(UInt32)) CODEC(T64, LZ4)
) ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(time)
ORDER BY (campaign_id, time, advertiser_id)
TTL time + INTERVAL 30 DAY TO VOLUME 'slow', time + INTERVAL 735 DAY
SETTINGS storage_policy = 'tiered', fsync_after_insert = 1, fsync_part_directory = 1, index_granularity = 1024,
    min_bytes_for_wide_part = 1073741824, min_parts_to_merge_at_once = 10, min_age_to_force_merge_seconds = 259200,
    min_age_to_force_merge_on_partition_only = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.reach_hours_to_days TO {database}.stream_reach_days AS
    SELECT toStartOfDay(hours.time) AS time, campaign_id, advertiser_id, groupUniqArrayArray(hours.coupons) AS coupons
    FROM {database}.stream_reach_hours AS hours GROUP BY time, campaign_id, advertiser_id;

-- The same of a nightly run's hours, over all that it counted. Rows of a run count only once `runs` names it the day's newest.
CREATE TABLE IF NOT EXISTS {database}.exact_reach_hours (
    time DateTime('UTC'), campaign_id UInt64, advertiser_id UInt64, run_id String, coupons Array(UInt32) CODEC(T64, LZ4)
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMMDD(time)
ORDER BY (run_id, campaign_id, time, advertiser_id)
TTL time + INTERVAL 735 DAY
SETTINGS storage_policy = 'tiered', fsync_after_insert = 1, fsync_part_directory = 1, index_granularity = 1024,
    min_bytes_for_wide_part = 1073741824;

-- The same by day. A task that is repeated writes the same rows.
CREATE TABLE IF NOT EXISTS {database}.exact_reach_days (
    time DateTime('UTC'), campaign_id UInt64, advertiser_id UInt64, run_id String,
    coupons SimpleAggregateFunction(groupUniqArrayArray, Array(UInt32)) CODEC(T64, LZ4)
) ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(time)
ORDER BY (run_id, campaign_id, time, advertiser_id)
TTL time + INTERVAL 30 DAY TO VOLUME 'slow', time + INTERVAL 735 DAY
SETTINGS storage_policy = 'tiered', fsync_after_insert = 1, fsync_part_directory = 1, index_granularity = 1024,
    min_bytes_for_wide_part = 1073741824;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.exact_reach_hours_to_days TO {database}.exact_reach_days AS
    SELECT toStartOfDay(hours.time) AS time, campaign_id, advertiser_id, run_id, groupUniqArrayArray(hours.coupons) AS coupons
    FROM {database}.exact_reach_hours AS hours GROUP BY time, campaign_id, advertiser_id, run_id;

-- The last row that a run writes of its users: with it, all of them are there.
CREATE TABLE IF NOT EXISTS {database}.exact_reach_runs (
    run_id String, date Date
) ENGINE = ReplacingMergeTree
ORDER BY run_id
TTL date + INTERVAL 735 DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
