-- Merging few parts at a time rewrites each row three times a day. Wait for ten, and put a day (a month, of days) into one
-- part once it is over: FINAL has nothing to do there.
ALTER TABLE {database}.stream_hours MODIFY SETTING
    min_parts_to_merge_at_once = 10, min_age_to_force_merge_seconds = 7200, min_age_to_force_merge_on_partition_only = 1;

ALTER TABLE {database}.stream_days MODIFY SETTING
    min_parts_to_merge_at_once = 10, min_age_to_force_merge_seconds = 259200, min_age_to_force_merge_on_partition_only = 1;
