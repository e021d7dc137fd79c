-- Take the lease if nobody has it, under the next epoch.
--
-- KEYS  lease, epoch, owed
-- ARGV  node, model, milliseconds, the highest epoch that the caller knows, 1 if it wants it only where a rebuild is owed
-- returns the epoch (0: another node has the lease, or it is not wanted), and whether a rebuild was owed before
--
-- The epoch grows beyond what the caller knows too: a server that lost its memory has forgotten its own count.
-- From now on a rebuild is owed, until one ends: if this holder dies, any node sees that and does it. Unless one was owed
-- before, that is noted with the lease's value, so that its holder can take it back.

if redis.call('EXISTS', KEYS[1]) == 1 then
    return {0, 0}
end
local owed = redis.call('EXISTS', KEYS[3])
if ARGV[5] == '1' and owed == 0 then
    return {0, 0}
end
local counted = tonumber(redis.call('GET', KEYS[2]) or 0) or 0
local epoch = string.format('%.0f', math.max(counted, tonumber(ARGV[4])) + 1)
local lease = epoch .. ' ' .. ARGV[2] .. ' ' .. ARGV[1]
redis.call('SET', KEYS[2], epoch)
redis.call('SET', KEYS[1], lease, 'PX', tonumber(ARGV[3]))
if owed == 0 then
    redis.call('SET', KEYS[3], lease)
end
return {tonumber(epoch), owed}
