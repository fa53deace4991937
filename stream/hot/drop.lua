-- Drops hours. What the shard retains moves in the same step, so that a reader whose plan is older sees it in the reply.
--
-- KEYS     span of the shard, then cells of hours
-- ARGV[1]  minutes before this are no longer retained
-- Returns  how many hours were dropped: none of a Redis that is being filled again, whose span has no sequence
local span, from_ms = KEYS[1], ARGV[1]
if redis.call('HEXISTS', span, SPAN.SEQUENCE) == 0 then return 0 end
if tonumber(redis.call('HGET', span, SPAN.FROM) or 0) < tonumber(from_ms) then
  redis.call('HSET', span, SPAN.FROM, from_ms)
end
redis.call('UNLINK', unpack(KEYS, 2))
return #KEYS - 1
