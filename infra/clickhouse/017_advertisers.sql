-- Rows are in the order of campaigns (of runs, and campaigns), and a question may be about an advertiser: granules without any of its
-- rows are skipped. Of a key all versions have the same advertiser, so FINAL misses none by that. Parts that are there get the index
-- in the background.
ALTER TABLE {database}.stream_hours ADD INDEX IF NOT EXISTS advertiser advertiser_id TYPE bloom_filter(0.01) GRANULARITY 1;

ALTER TABLE {database}.stream_days ADD INDEX IF NOT EXISTS advertiser advertiser_id TYPE bloom_filter(0.01) GRANULARITY 1;

ALTER TABLE {database}.exact_hours ADD INDEX IF NOT EXISTS advertiser advertiser_id TYPE bloom_filter(0.01) GRANULARITY 1;

ALTER TABLE {database}.exact_days ADD INDEX IF NOT EXISTS advertiser advertiser_id TYPE bloom_filter(0.01) GRANULARITY 1;

ALTER TABLE {database}.stream_hours MATERIALIZE INDEX advertiser;

ALTER TABLE {database}.stream_days MATERIALIZE INDEX advertiser;

ALTER TABLE {database}.exact_hours MATERIALIZE INDEX advertiser;

ALTER TABLE {database}.exact_days MATERIALIZE INDEX advertiser;
