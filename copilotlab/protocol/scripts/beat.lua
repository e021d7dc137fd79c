-- Say that a node lives, and read the flags: a heartbeat.
--
-- KEYS  generation, lease, owed, epoch, the caller's sign of life
-- ARGV  a generation to begin with ('' if the policy knows none), the highest epoch that the caller knows,
--       channel ('' for none), payload, life's milliseconds, signs of life, 1 if leases are fenced,
--       a second channel ('' for none) and payload: how the node is, for watchers
-- returns generation, lease ('' if nobody has it), owed (0 or 1), epoch
--
-- Without a generation the server is new, or has lost its memory. The node that finds this sets one, and marks a rebuild
-- as owed; since all this is one step, only one node finds it, however many come back. Something is always written, so
-- that a server that takes no writes (read-only, out of memory) counts as away.

local ALIVE = ARGV[6]
--# standing
local generation = ''
if ARGV[1] ~= '' then
    generation = redis.call('GET', KEYS[1])
    if not generation then
        generation = ARGV[1]
        redis.call('SET', KEYS[1], generation)
        redis.call('SET', KEYS[3], 'true')
    end
end
local epoch = string.format('%.0f', math.max(counted(redis.call('GET', KEYS[4])), tonumber(ARGV[2])))
redis.call('SET', KEYS[4], epoch)
redis.call('SET', KEYS[5], '1', 'PX', tonumber(ARGV[5]))
if ARGV[3] ~= '' then
    redis.call('PUBLISH', ARGV[3], ARGV[4])
end
if ARGV[8] ~= '' then
    redis.call('PUBLISH', ARGV[8], ARGV[9])
end
local lease = redis.call('GET', KEYS[2]) or ''
if ARGV[7] == '1' then
    lease = standing(lease)
end
return {generation, lease, redis.call('EXISTS', KEYS[3]), epoch}
