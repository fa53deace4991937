-- Where alerts are delivered to. The newest version of an id counts. The secret is stored as it is: messages are signed with it.
CREATE TABLE IF NOT EXISTS {database}.webhooks (
    id String, advertiser_id UInt64, url String, description String, kinds Array(String), format LowCardinality(String),
    secret String, former_secret String, former_until_ms UInt64, enabled UInt8, disabled_why String,
    created_ms UInt64, since_ms UInt64, deleted UInt8, version UInt64
) ENGINE = ReplacingMergeTree(version) ORDER BY id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Attempts to deliver a message to a webhook, and requests to do so. The one with the highest number says how a delivery stands.
CREATE TABLE IF NOT EXISTS {database}.webhook_deliveries (
    id String, webhook_id String, message_id String, alert_id String, alert_version UInt32, type LowCardinality(String),
    attempt UInt32, outcome LowCardinality(String), status UInt16, elapsed_ms UInt32, reply String, problem String,
    began_ms UInt64, next_ms UInt64, at DateTime64(3, 'UTC')
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(at)
ORDER BY (alert_id, alert_version, webhook_id, attempt, at)
TTL toDateTime(at) + INTERVAL 90 DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
