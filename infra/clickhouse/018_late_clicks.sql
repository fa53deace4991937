-- The clicks among late_events. 0 in rows that were written before this.
ALTER TABLE {database}.stream_hours ADD COLUMN IF NOT EXISTS late_clicks UInt64;

ALTER TABLE {database}.stream_days ADD COLUMN IF NOT EXISTS late_clicks UInt64;

ALTER TABLE {database}.exact_hours ADD COLUMN IF NOT EXISTS late_clicks UInt64;

ALTER TABLE {database}.exact_days ADD COLUMN IF NOT EXISTS late_clicks UInt64;
