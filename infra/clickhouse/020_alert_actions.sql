-- Who has acknowledged which version of an alert. The first of a version counts.
CREATE TABLE IF NOT EXISTS {database}.alert_acknowledgements (
    id String, version UInt32, actor String, at DateTime64(3, 'UTC')
) ENGINE = ReplacingMergeTree
ORDER BY (id, version, at)
TTL toDateTime(at) + INTERVAL 400 DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Mutes: alerts of a kind (empty: of all kinds) of an advertiser, or of one campaign of it, until a moment. The newest version of an id
-- counts; `deleted` rows are gone.
CREATE TABLE IF NOT EXISTS {database}.alert_mutes (
    id String, version UInt64, kind LowCardinality(String), advertiser_id UInt64, campaign_id UInt64, every_campaign UInt8,
    until_ms UInt64, actor String, at DateTime64(3, 'UTC'), deleted UInt8
) ENGINE = ReplacingMergeTree(version)
ORDER BY id
TTL toDateTime(at) + INTERVAL 400 DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
