-- Which table (system.tables.uuid) a border or a run is about: one that was dropped and made again has another. from_ms: windows that
-- began before it may be missing from that table.
ALTER TABLE {database}.tier_borders ADD COLUMN IF NOT EXISTS table_id UUID, ADD COLUMN IF NOT EXISTS from_ms UInt64;

ALTER TABLE {database}.tier_borders UPDATE table_id =
    (SELECT uuid FROM system.tables WHERE database = '{database}' AND name = 'stream_hours')
    WHERE tier = 'hours' AND table_id = toUUID('00000000-0000-0000-0000-000000000000') SETTINGS mutations_sync = 2;

ALTER TABLE {database}.tier_borders UPDATE table_id =
    (SELECT uuid FROM system.tables WHERE database = '{database}' AND name = 'stream_days')
    WHERE tier = 'days' AND table_id = toUUID('00000000-0000-0000-0000-000000000000') SETTINGS mutations_sync = 2;

ALTER TABLE {database}.runs ADD COLUMN IF NOT EXISTS hours_id UUID, ADD COLUMN IF NOT EXISTS days_id UUID;

ALTER TABLE {database}.runs UPDATE
    hours_id = (SELECT uuid FROM system.tables WHERE database = '{database}' AND name = 'exact_hours'),
    days_id = (SELECT uuid FROM system.tables WHERE database = '{database}' AND name = 'exact_days')
    WHERE hours_id = toUUID('00000000-0000-0000-0000-000000000000') SETTINGS mutations_sync = 2;

CREATE OR REPLACE VIEW {database}.current_runs AS
    SELECT date, argMax(run_id, (fence, published_at)) AS run_id, argMax(published_at, (fence, published_at)) AS at,
        argMax(input_digest, (fence, published_at)) AS input_digest, max(fence) AS highest_fence,
        argMax(open_from_ms, (fence, published_at)) AS open_from_ms,
        argMax(hours_id, (fence, published_at)) AS hours_id, argMax(days_id, (fence, published_at)) AS days_id
    FROM {database}.runs GROUP BY date;
