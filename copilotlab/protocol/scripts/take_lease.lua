-- Take the lease, if it is free, under the next epoch.
--
-- KEYS  lease, epoch, owed, the caller's sign of life
-- ARGV  node, model, milliseconds, the highest epoch that the caller knows, 1 to take it only where a rebuild is owed,
--       session, life's milliseconds, signs of life
-- returns the epoch (0: another node has the lease, or no rebuild is owed), whether a rebuild was owed before, and the
-- node that is gone and left the lease behind ('' if none did)
--
-- The epoch is also higher than any that the caller knows, since a server that lost its memory has forgotten its own
-- count. From now on a rebuild is owed until one ends: if this holder dies, any node sees that, and runs it. Unless one
-- was owed before, the mark has the lease's value, so that its holder can take it back. A lease is free if its holder
-- shows no sign of life, or was this very node, for this model, in an earlier session.

local ALIVE = ARGV[8]
--# standing
local stood = redis.call('GET', KEYS[1]) or ''
local lease = standing(stood)
local model, session, node = string.match(lease, '^%d+ (%x+) (%x+) (.*)$')
if lease ~= '' and not (node == ARGV[1] and model == ARGV[2] and session ~= ARGV[6]) then
    return {0, 0, ''}
end
local owed = redis.call('EXISTS', KEYS[3])
if ARGV[5] == '1' and owed == 0 then
    return {0, 0, ''}
end
local epoch = string.format('%.0f', math.max(counted(redis.call('GET', KEYS[2])), tonumber(ARGV[4])) + 1)
local taken = epoch .. ' ' .. ARGV[2] .. ' ' .. ARGV[6] .. ' ' .. ARGV[1]
redis.call('SET', KEYS[2], epoch)
redis.call('SET', KEYS[1], taken, 'PX', tonumber(ARGV[3]))
redis.call('SET', KEYS[4], '1', 'PX', tonumber(ARGV[7]))
if owed == 0 then
    redis.call('SET', KEYS[3], taken)
end
return {tonumber(epoch), owed, string.match(stood, '^%d+ %x+ %x+ (.*)$') or ''}
