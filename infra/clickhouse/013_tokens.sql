-- A key may be narrowed to campaigns; a share is a key that stands in a link.
ALTER TABLE {database}.api_keys ADD COLUMN IF NOT EXISTS every_campaign UInt8 DEFAULT 1;

ALTER TABLE {database}.api_keys ADD COLUMN IF NOT EXISTS campaigns Array(UInt64);

ALTER TABLE {database}.api_keys ADD COLUMN IF NOT EXISTS share UInt8 DEFAULT 0;
