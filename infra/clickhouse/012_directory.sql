-- Names and facts of advertisers, campaigns, ads and publishers. The newest version of a (kind, id) counts; `deleted` rows are gone.
CREATE TABLE IF NOT EXISTS {database}.directory (
    kind LowCardinality(String), id UInt64, name String, advertiser_id UInt64, campaign_id UInt64,
    timezone LowCardinality(String), status LowCardinality(String),
    start_date Nullable(Date32), end_date Nullable(Date32),
    budget LowCardinality(Nullable(String)), budget_micros Nullable(UInt64),
    deleted UInt8, changed_at DateTime64(3, 'UTC'), version UInt64
) ENGINE = ReplacingMergeTree(version) ORDER BY (kind, id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Routers read what is newer than they have, each second or so: parts and granules without any of it are skipped.
ALTER TABLE {database}.directory ADD INDEX IF NOT EXISTS by_version version TYPE minmax GRANULARITY 1;
