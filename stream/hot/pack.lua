-- Packs cells of a closed minute: each gets all the rows that it has at a sequence, in place of its rows by flush.
--
-- KEYS     span of the shard, then all other keys of the cells, in any order
-- ARGV     sequence, known moves, then of each cell: hour key, cell, rows, roll-ups, key of its rows by flush, field of late rows,
--          minute
-- Returns  the moves there are with this one; 0 the shard is at another sequence, or has fewer moves than are known
local sequence, known_moves = tonumber(ARGV[1]), tonumber(ARGV[2])
local shown, moves = unpack(redis.call('HMGET', KEYS[1], SPAN.SEQUENCE, SPAN.MOVES))
if tonumber(shown or -1) ~= sequence or tonumber(moves or 0) < known_moves then return 0 end
for at = 3, #ARGV, 7 do move_cell(sequence, unpack(ARGV, at, at + 6)) end
return redis.call('HINCRBY', KEYS[1], SPAN.MOVES, 1)
