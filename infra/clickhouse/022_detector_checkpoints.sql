-- What the detector knows of the campaigns of a shard, as of a minute. Of the two slots of a shard one is complete; the next checkpoint
-- takes the other one.
CREATE TABLE IF NOT EXISTS {database}.detector_checkpoints (
    shard UInt16, slot UInt8, part UInt16, parts UInt16, upto_ms UInt64, body String, at DateTime64(3, 'UTC') DEFAULT now64(3)
) ENGINE = ReplacingMergeTree(at)
ORDER BY (shard, slot, part)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
