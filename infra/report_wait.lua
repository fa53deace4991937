-- Publishes what a worker waits for, and drops the reports of dead workers.
--
-- KEYS     the hash of reports: worker → time (epoch s, by Redis' clock), a space, and its reasons as JSON
-- ARGV     the worker; its reasons, or nothing to withdraw its report; the age in seconds beyond which a report is of a dead worker
local now, reports = tonumber(redis.call('TIME')[1]), redis.call('HGETALL', KEYS[1])
for i = 1, #reports, 2 do
  local reported_at = tonumber(string.match(reports[i + 1], '^%d+')) or 0
  if now - reported_at > tonumber(ARGV[3]) then redis.call('HDEL', KEYS[1], reports[i]) end
end
if ARGV[2] == '' then return redis.call('HDEL', KEYS[1], ARGV[1]) end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now) .. ' ' .. ARGV[2])
return redis.call('EXPIRE', KEYS[1], 60)
