-- Takes tokens from a bucket, by Redis' own clock.
--
-- KEYS     the bucket
-- ARGV     tokens a second; tokens of a full bucket; tokens to take; tokens that must be there
-- Returns  whether they were taken, and how many are left, in thousandths
local rate, burst, cost, needed = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local bucket = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local before, at = tonumber(bucket[1]) or burst, tonumber(bucket[2]) or now
local tokens = math.min(burst, before + math.max(0, now - at) * rate)
local taken = 0
if tokens >= needed then
  tokens, taken = math.max(tokens - cost, -burst), 1
end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(2000 * burst / rate) + 1000)
return {taken, math.floor(tokens * 1000)}
