-- How often each key was used, and when last: of each process of a router what it has counted since its start.
CREATE TABLE IF NOT EXISTS {database}.key_use (
    key String, process String, requests UInt64, last_used_ms UInt64
) ENGINE = ReplacingMergeTree(requests) ORDER BY (key, process);
