-- Statements as they were issued. Of two rows with one number, by routers that both thought to hold the lease, the one with the
-- higher fence counts. `runs`: the current runs of the month's days then; `body`: JSON, what the statement says.
CREATE TABLE IF NOT EXISTS {database}.statements (
    advertiser_id UInt64, month Date, issue UInt32, digest String, issued_at DateTime64(3, 'UTC'), fence UInt64,
    runs Array(String), body String
) ENGINE = ReplacingMergeTree ORDER BY (advertiser_id, month, issue, digest)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
