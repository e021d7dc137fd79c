-- If the lease is still the caller's, renew it, put a chunk where others can fetch it, and say so; else do nothing.
--
-- KEYS  lease, chunk, the caller's sign of life
-- ARGV  lease's value, milliseconds (0: it is not renewed), chunk ('' for none), chunk's milliseconds,
--       channel ('' for none), payload, life's milliseconds
-- returns how many nodes listened, or -1 if another node has the lease, or none

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return -1
end
redis.call('SET', KEYS[3], '1', 'PX', tonumber(ARGV[7]))
if tonumber(ARGV[2]) > 0 then
    redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[2]))
end
if ARGV[3] ~= '' then
    redis.call('SET', KEYS[2], ARGV[3], 'PX', tonumber(ARGV[4]))
end
if ARGV[5] == '' then
    return 0
end
return redis.call('PUBLISH', ARGV[5], ARGV[6])
