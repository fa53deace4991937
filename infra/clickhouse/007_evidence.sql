-- What a run read: the files of the archive, as they were then.
CREATE TABLE IF NOT EXISTS {database}.run_files (
    run_id String, path String, bytes UInt64, sha256 String
) ENGINE = ReplacingMergeTree ORDER BY (run_id, path)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Distinct users of a day, about.
CREATE TABLE IF NOT EXISTS {database}.exact_users (
    date Date, campaign_id UInt64, advertiser_id UInt64, run_id String, users UInt64
) ENGINE = ReplacingMergeTree ORDER BY (run_id, campaign_id, advertiser_id)
TTL date + INTERVAL 731 DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
