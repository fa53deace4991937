-- Cells and rows by flush. Put in front of the scripts that need it, behind the constants of layout.py: SPAN, OP and PARTS.
-- A cell of many rows is written in parts: its rows, and its roll-up by each dimension (cell_format.py).
-- A key is never emptied and then written again in one call: while a cluster moves its slot, a node refuses to write a key that it does
-- not have, in the midst of the script.

-- The names of all parts of a cell, or of rows by flush: that of a small one, and those of a large one.
local function all_names(name)
  local names = {name}
  for i, part in ipairs(PARTS) do names[i + 1] = name .. part end
  return names
end

-- The parts of a large cell, in the order of PARTS. `roll_ups`: four lengths, then the roll-ups.
local function parts_of(rows, roll_ups)
  local sizes, at, parts = {struct.unpack('<I4I4I4I4', roll_ups)}, 17, {rows}
  for i = 1, 4 do
    parts[i + 1] = string.sub(roll_ups, at, at + sizes[i] - 1)
    at = at + sizes[i]
  end
  return parts
end

local function put_cell(hour_key, cell, rows, roll_ups)
  if roll_ups == '' then
    redis.call('HSET', hour_key, cell, rows)
    return
  end
  local fields = {}
  for i, part in ipairs(parts_of(rows, roll_ups)) do
    fields[2 * i - 1], fields[2 * i] = cell .. PARTS[i], part
  end
  redis.call('HSET', hour_key, unpack(fields))
end

local function add_rows(open_key, sequence, rows, roll_ups)
  if roll_ups == '' then
    redis.call('HSET', open_key, sequence, rows)
    return
  end
  for i, part in ipairs(parts_of(rows, roll_ups)) do redis.call('HSET', open_key .. PARTS[i], sequence, part) end
end

-- Writes the rows of a flush in place of all that flushes before have added.
local function replace_rows(open_key, sequence, rows, roll_ups)
  add_rows(open_key, sequence, rows, roll_ups)
  local is_large = roll_ups ~= ''
  for i, name in ipairs(all_names(open_key)) do
    if (i > 1) ~= is_large then redis.call('UNLINK', name)
    else
      for _, flush in ipairs(redis.call('HKEYS', name)) do
        if flush ~= sequence then redis.call('HDEL', name, flush) end
      end
    end
  end
end

-- Takes a minute's late rows out of the campaign's, which are (minute, length, rows) over and over.
local function remove_late(hour_key, late_field, minute)
  local late = redis.call('HGET', hour_key, late_field)
  if not late then return end
  local kept, at = {}, 1
  while at <= #late do
    local entry_minute, size, rows_at = struct.unpack('<BI4', late, at)
    local next_at = rows_at + size
    if entry_minute ~= minute then kept[#kept + 1] = string.sub(late, at, next_at - 1) end
    at = next_at
  end
  if #kept == 0 then redis.call('HDEL', hour_key, late_field)
  else redis.call('HSET', hour_key, late_field, table.concat(kept)) end
end

-- Takes away the rows of all flushes up to `sequence`. Those of a flush of which the last call has not come yet stay.
local function remove_by_flush(open_key, sequence)
  local has_later, older = false, {}
  for _, name in ipairs({open_key, open_key .. PARTS[1]}) do
    for _, flush in ipairs(redis.call('HKEYS', name)) do
      if tonumber(flush) > sequence then has_later = true else older[#older + 1] = flush end
    end
  end
  if not has_later then
    redis.call('UNLINK', unpack(all_names(open_key)))
    return
  end
  if #older > 0 then
    for _, name in ipairs(all_names(open_key)) do redis.call('HDEL', name, unpack(older)) end
  end
end

-- Writes all that a cell has at `sequence`, in place of its rows by flush and of its late rows.
local function move_cell(sequence, hour_key, cell, rows, roll_ups, open_key, late_field, minute)
  put_cell(hour_key, cell, rows, roll_ups)
  if roll_ups == '' then redis.call('HDEL', hour_key, unpack(all_names(cell), 2))
  else redis.call('HDEL', hour_key, cell) end
  remove_late(hour_key, late_field, tonumber(minute))
  remove_by_flush(open_key, sequence)
end
