-- Keys of the HTTP interface: only a digest of each is stored. The newest version of an id counts.
CREATE TABLE IF NOT EXISTS {database}.api_keys (
    id String, name String, digest String, former_digest String, former_until_ms UInt64,
    everybody UInt8, advertisers Array(UInt64), admin UInt8, rate Float64, burst Float64,
    created_ms UInt64, expires_ms UInt64, revoked_ms UInt64, version UInt64
) ENGINE = ReplacingMergeTree(version) ORDER BY id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Who did what to keys, and when.
CREATE TABLE IF NOT EXISTS {database}.audit (
    at DateTime64(3, 'UTC'), actor String, action LowCardinality(String), subject String, detail String
) ENGINE = MergeTree ORDER BY at
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
