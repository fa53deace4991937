-- Reads a shard of the hot tier at one moment: what it holds, and the values of hashes.
--
-- KEYS     span of the shard, then hashes of cells and of rows by flush
-- ARGV     how many fields of the span, and these; then of each hash how many fields, and these, or 0 for all of it
-- Returns  the fields of the span, then the values of each hash
local at = 1

local function fields_of(key)
  local first, count = at + 1, tonumber(ARGV[at])
  at = first + count
  if count == 0 then return redis.call('HVALS', key) end
  return redis.call('HMGET', key, unpack(ARGV, first, first + count - 1))
end

local replies = {}
for i, key in ipairs(KEYS) do replies[i] = fields_of(key) end
return replies
