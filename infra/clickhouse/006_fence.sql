-- A run holds a lease, whose number grows each time it is given out: of two runs of a day, the one that had it later counts, even
-- if the other one publishes after it.
ALTER TABLE {database}.runs ADD COLUMN IF NOT EXISTS fence UInt64 DEFAULT 0;

-- Events of a day that were archived after its run had begun, by the run that lacks them.
CREATE TABLE IF NOT EXISTS {database}.unbilled (
    run_id String, date Date, events UInt64, found_at DateTime64(3, 'UTC')
) ENGINE = ReplacingMergeTree(found_at) ORDER BY run_id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE VIEW IF NOT EXISTS {database}.current_runs AS
    SELECT date, argMax(run_id, (fence, published_at)) AS run_id, argMax(published_at, (fence, published_at)) AS at,
        argMax(input_digest, (fence, published_at)) AS input_digest, max(fence) AS highest_fence
    FROM {database}.runs GROUP BY date;
