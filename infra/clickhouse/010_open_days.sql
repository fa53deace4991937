-- A run of a day that was still open (--force) holds for the hours before this moment (epoch ms) only; 0: for the whole day.
ALTER TABLE {database}.runs ADD COLUMN IF NOT EXISTS open_from_ms UInt64 DEFAULT 0;

CREATE OR REPLACE VIEW {database}.current_runs AS
    SELECT date, argMax(run_id, (fence, published_at)) AS run_id, argMax(published_at, (fence, published_at)) AS at,
        argMax(input_digest, (fence, published_at)) AS input_digest, max(fence) AS highest_fence,
        argMax(open_from_ms, (fence, published_at)) AS open_from_ms
    FROM {database}.runs GROUP BY date;
