-- Alerts: a row for each version of one, so that each change can be delivered. The newest version of an id counts. Rows of the same
-- version are the same, however often they are sent.
CREATE TABLE IF NOT EXISTS {database}.alerts (
    id String, version UInt32, kind LowCardinality(String), severity LowCardinality(String), state LowCardinality(String),
    advertiser_id UInt64, campaign_id UInt64, opened_ms UInt64, ended_ms UInt64, summary String, detail String,
    at DateTime64(3, 'UTC') DEFAULT now64(3)
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(at)
ORDER BY (id, version)
TTL toDateTime(at) + INTERVAL 400 DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
