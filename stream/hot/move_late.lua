-- Moves the rows by flush of a minute that no worker holds any more to the late rows of its hour.
--
-- KEYS     span of the shard, rows by flush of a campaign and minute, cells of the hour, then the parts of the rows by flush
-- ARGV     field of late rows, minute of the hour
-- Returns  the moves there are with this one
local span, open_key, hour_key = KEYS[1], KEYS[2], KEYS[3]
local late_field, minute = ARGV[1], tonumber(ARGV[2])
local late = {redis.call('HGET', hour_key, late_field) or ''}
for _, name in ipairs({open_key, open_key .. PARTS[1]}) do
  for _, rows in ipairs(redis.call('HVALS', name)) do
    table.insert(late, struct.pack('<BI4', minute, #rows))
    table.insert(late, rows)
  end
end
redis.call('HSET', hour_key, late_field, table.concat(late))
redis.call('UNLINK', unpack(all_names(open_key)))
return redis.call('HINCRBY', span, SPAN.MOVES, 1)
