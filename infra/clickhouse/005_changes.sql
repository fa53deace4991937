-- When a row was written again after its window had closed; 0 for the first writing.
ALTER TABLE {database}.stream_hours ADD COLUMN IF NOT EXISTS changed_at DateTime('UTC') DEFAULT 0;

ALTER TABLE {database}.stream_days ADD COLUMN IF NOT EXISTS changed_at DateTime('UTC') DEFAULT 0;

ALTER TABLE {database}.stream_hours ADD INDEX IF NOT EXISTS changed changed_at TYPE minmax GRANULARITY 4;

ALTER TABLE {database}.stream_days ADD INDEX IF NOT EXISTS changed changed_at TYPE minmax GRANULARITY 4;
