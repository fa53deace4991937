-- Shows a flush, in one call or several: the last one moves the shard's sequence. A call happens as a whole, or not at all.
--
-- KEYS     span of the shard, then all other keys that the operations touch, in any order
-- ARGV     expected sequence (-1: any), known moves, new sequence, number of the call from 1 on, '1' in the last call, closed_ms,
--          packed_ms, from_ms, newest_ms, sent_ms (of the last three '' leaves the span as it is), events that the flush shows,
--          canary_ms and newest_canary_ms ('' leaves them as they are), then operations: one of OP and its arguments, over and over
-- Returns  1 applied; 0 known already; -1 the shard is behind the expected sequence, has fewer moves than are known, or lacks the call
--          before this one: Redis has lost some of it
local span = KEYS[1]
local expected, known_moves, sequence = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local number, is_last = tonumber(ARGV[4]), ARGV[5] == '1'
local closed_ms, packed_ms, from_ms, newest_ms, sent_ms, events, canary_ms, newest_canary_ms = unpack(ARGV, 6, 13)
local FIRST_OPERATION = 14

-- How many arguments an operation has, and what it does.
local operations = {
  [OP.PUT_CELL] = {4, put_cell},
  [OP.MOVE_CELL] = {7, function(...) move_cell(sequence, ...) end},
  [OP.ADD_ROWS] = {4, add_rows},
  [OP.REPLACE_ROWS] = {4, replace_rows},
  [OP.ADD_LATE] = {3, function(hour_key, late_field, rows)
    redis.call('HSET', hour_key, late_field, (redis.call('HGET', hour_key, late_field) or '') .. rows)
  end},
  [OP.ADD_CAMPAIGN] = {2, function(advertiser_key, campaign) redis.call('SADD', advertiser_key, campaign) end},
}

local shown, moves = unpack(redis.call('HMGET', span, SPAN.SEQUENCE, SPAN.MOVES))
shown, moves = tonumber(shown or -1), tonumber(moves or 0)
if shown > sequence or (shown == sequence and expected ~= -1) then return 0 end
if expected ~= -1 and (shown < expected or moves < known_moves) then return -1 end
if number > 1 and redis.call('HGET', span, SPAN.CALLS) ~= ARGV[3] .. ':' .. (number - 1) then return -1 end

local at = FIRST_OPERATION
while at <= #ARGV do
  local count, run = unpack(operations[ARGV[at]])
  run(unpack(ARGV, at + 1, at + count))
  at = at + 1 + count
end

if not is_last then
  redis.call('HSET', span, SPAN.CALLS, ARGV[3] .. ':' .. number)
else
  if number > 1 then redis.call('HDEL', span, SPAN.CALLS) end
  redis.call('HSET', span, SPAN.SEQUENCE, ARGV[3], SPAN.CLOSED, closed_ms, SPAN.PACKED, packed_ms)
  if from_ms ~= '' then
    local from = math.max(tonumber(redis.call('HGET', span, SPAN.FROM) or 0), tonumber(from_ms))
    redis.call('HSET', span, SPAN.FROM, string.format('%.0f', from))
  end
  if newest_ms ~= '' then redis.call('HSET', span, SPAN.NEWEST, newest_ms) end
  if sent_ms ~= '' then redis.call('HSET', span, SPAN.SENT, sent_ms) end
  if canary_ms ~= '' then redis.call('HSET', span, SPAN.CANARY, canary_ms, SPAN.NEWEST_CANARY, newest_canary_ms) end
  if events ~= '0' then redis.call('HINCRBY', span, SPAN.EVENTS, events) end
end
return 1
