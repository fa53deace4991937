-- Of the last canary of each source partition before the border was published: when the oldest and the newest of them were sent.
ALTER TABLE {database}.tier_borders ADD COLUMN IF NOT EXISTS canary_ms UInt64, ADD COLUMN IF NOT EXISTS newest_canary_ms UInt64;
