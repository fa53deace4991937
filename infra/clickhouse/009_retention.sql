-- Rows are kept for longer than readers are promised, so that no question is refused, or answered in part, for what aligning its
-- range adds. Hours, of which 30 days are promised: two months, which is how far back "last month" begins, of local days in any
-- time zone. Days: two years.
ALTER TABLE {database}.stream_hours MODIFY TTL time + INTERVAL 32 DAY TO VOLUME 'slow', time + INTERVAL 66 DAY;

ALTER TABLE {database}.stream_days MODIFY TTL time + INTERVAL 30 DAY TO VOLUME 'slow', time + INTERVAL 735 DAY;

ALTER TABLE {database}.exact_hours MODIFY TTL time + INTERVAL 735 DAY;

ALTER TABLE {database}.exact_days MODIFY TTL time + INTERVAL 30 DAY TO VOLUME 'slow', time + INTERVAL 735 DAY;

ALTER TABLE {database}.exact_users MODIFY TTL date + INTERVAL 735 DAY;
