"""The scripts by which the hot tier is written: each call happens as a whole, or not at all."""

from __future__ import annotations

_MOVE = """
local kinds = {':r', ':a', ':p', ':c', ':d'}
local function parts(value, rolls)
  local sizes, at, found = {struct.unpack('<I4I4I4I4', rolls)}, 17, {value}
  for i = 1, 4 do
    found[i + 1] = string.sub(rolls, at, at + sizes[i] - 1)
    at = at + sizes[i]
  end
  return found
end
local function put(key, cell, value, rolls)
  if rolls == '' then redis.call('HSET', key, cell, value) return end
  local told = {}
  for i, part in ipairs(parts(value, rolls)) do told[2 * i - 1], told[2 * i] = cell .. kinds[i], part end
  redis.call('HSET', key, unpack(told))
end
local function add(open, sequence, value, rolls)
  if rolls == '' then redis.call('HSET', open, sequence, value) return end
  for i, part in ipairs(parts(value, rolls)) do redis.call('HSET', open .. kinds[i], sequence, part) end
end
local function all(name)
  local names = {name}
  for i, kind in ipairs(kinds) do names[i + 1] = name .. kind end
  return names
end
local function without(key, campaign, minute)
  local later = redis.call('HGET', key, campaign .. '+')
  if not later then return end
  local kept, at = {}, 1
  while at <= #later do
    local m, a, b, c, d = string.byte(later, at, at + 4)
    local next_at = at + 5 + a + 256 * (b + 256 * (c + 256 * d))
    if m ~= tonumber(minute) then kept[#kept + 1] = string.sub(later, at, next_at - 1) end
    at = next_at
  end
  if #kept == 0 then redis.call('HDEL', key, campaign .. '+')
  else redis.call('HSET', key, campaign .. '+', table.concat(kept)) end
end
local function move(key, cell, value, rolls, sequence)
  local campaign, minute = string.match(cell, '^(%d+):(%d+)$')
  local base, hour = string.match(key, '^(.*):h:(%d+)$')
  local open = string.format('%s:o:%.0f:%s', base, tonumber(hour) + 60000 * tonumber(minute), campaign)
  redis.call('HDEL', key, unpack(all(cell)))
  put(key, cell, value, rolls)
  without(key, campaign, minute)
  local later, old = false, {}
  for _, name in ipairs({open, open .. ':r'}) do
    for _, added in ipairs(redis.call('HKEYS', name)) do
      if tonumber(added) > sequence then later = true else old[#old + 1] = added end
    end
  end
  if not later then redis.call('UNLINK', unpack(all(open))) return end
  for _, added in ipairs(old) do
    for _, name in ipairs(all(open)) do redis.call('HDEL', name, added) end
  end
end
"""

# KEYS[1] the span; ARGV: expected sequence (-1: whatever it is), new sequence, is this the last call, closed_ms, packed_ms,
# from_ms, newest_ms, sent_ms, then (op, key, field, rows, roll-ups) over and over. Returns 1 applied, 0 known already, -1 memory
# lost. Put a cell, Move all rows into a cell, add what a Flush brought to an open one, Replace all that flushes brought,
# put what came Later behind what did before, Add to a set.
APPLY = (
    _MOVE
    + """
local held = tonumber(redis.call('HGET', KEYS[1], 'sequence') or -1)
local expected, new = tonumber(ARGV[1]), tonumber(ARGV[2])
if held > new or (held == new and expected ~= -1) then return 0 end
if held < expected then return -1 end
for i = 9, #ARGV, 5 do
  local op = ARGV[i]
  local key, field, value, rolls = ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  if op == 'F' then add(key, field, value, rolls)
  elseif op == 'R' then redis.call('UNLINK', unpack(all(key))) add(key, field, value, rolls)
  elseif op == 'M' then move(key, field, value, rolls, new)
  elseif op == 'P' then put(key, field, value, rolls)
  elseif op == 'L' then redis.call('HSET', key, field, (redis.call('HGET', key, field) or '') .. value)
  else redis.call('SADD', key, field) end
end
if ARGV[3] == '1' then
  redis.call('HSET', KEYS[1], 'sequence', ARGV[2], 'closed_ms', ARGV[4], 'packed_ms', ARGV[5])
  if ARGV[6] ~= '' then
    local from = math.max(tonumber(redis.call('HGET', KEYS[1], 'from_ms') or 0), tonumber(ARGV[6]))
    redis.call('HSET', KEYS[1], 'from_ms', string.format('%.0f', from))
  end
  if ARGV[7] ~= '' then redis.call('HSET', KEYS[1], 'newest_ms', ARGV[7]) end
  if ARGV[8] ~= '' then redis.call('HSET', KEYS[1], 'sent_ms', ARGV[8]) end
end
return 1
"""
)

# KEYS[1] the span; ARGV: the sequence, then (key, cell, rows, roll-ups) over and over. Returns 1 applied, 0 for another sequence.
PACK = (
    _MOVE
    + """
local sequence = tonumber(ARGV[1])
if tonumber(redis.call('HGET', KEYS[1], 'sequence') or -1) ~= sequence then return 0 end
for i = 2, #ARGV, 4 do move(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], sequence) end
return 1
"""
)

# KEYS: the rows of a minute by flush, its hour; ARGV: the field of what came later for the campaign, the minute of the hour.
MOVE_LATER = (
    _MOVE
    + """
local later = { redis.call('HGET', KEYS[2], ARGV[1]) or '' }
for _, name in ipairs({KEYS[1], KEYS[1] .. ':r'}) do
  for _, value in ipairs(redis.call('HVALS', name)) do
    table.insert(later, struct.pack('<BI4', tonumber(ARGV[2]), #value))
    table.insert(later, value)
  end
end
redis.call('HSET', KEYS[2], ARGV[1], table.concat(later))
redis.call('UNLINK', unpack(all(KEYS[1])))
"""
)

# KEYS: the span, then hours; ARGV: before when minutes are dropped. What the shard holds moves in the same step, so that a reader
# whose plan is older sees it in the reply. A span without a sequence is that of a Redis that is being filled again: nothing is dropped.
DROP = """
if redis.call('HEXISTS', KEYS[1], 'sequence') == 0 then return 0 end
if tonumber(redis.call('HGET', KEYS[1], 'from_ms') or 0) < tonumber(ARGV[1]) then
  redis.call('HSET', KEYS[1], 'from_ms', ARGV[1])
end
redis.call('UNLINK', unpack(KEYS, 2))
return #KEYS - 1
"""
