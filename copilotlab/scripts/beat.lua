-- A heartbeat: say that the node lives, and see how things stand.
--
-- KEYS  generation, lease, owed, epoch
-- ARGV  a generation to begin with ('' if the policy knows none), the highest epoch that the caller knows,
--       channel ('' for none), payload
-- returns generation, lease ('' if nobody has it), owed (0 or 1), epoch
--
-- No generation: the server lost its memory, or is new. Whoever finds that begins one, and a rebuild is owed; since
-- this is one step, it is found once, however many nodes come back. Something is always written: a server that takes
-- no writes (read-only, out of memory) is away.

local generation = ''
if ARGV[1] ~= '' then
    generation = redis.call('GET', KEYS[1])
    if not generation then
        generation = ARGV[1]
        redis.call('SET', KEYS[1], generation)
        redis.call('SET', KEYS[3], 'true')
    end
end
local counted = tonumber(redis.call('GET', KEYS[4]) or 0) or 0
local epoch = string.format('%.0f', math.max(counted, tonumber(ARGV[2])))
redis.call('SET', KEYS[4], epoch)
if ARGV[3] ~= '' then
    redis.call('PUBLISH', ARGV[3], ARGV[4])
end
return {generation, redis.call('GET', KEYS[2]) or '', redis.call('EXISTS', KEYS[3]), tonumber(epoch)}
