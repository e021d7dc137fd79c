-- Give the lease back, if it is still the caller's.
--
-- KEYS  lease, owed
-- ARGV  lease's value, '1' if what ends was a whole rebuild
-- returns 1, or 0 if the lease is another's or nobody's
--
-- Then no rebuild is owed any more. After anything less, one still is, unless it is owed for this lease alone: that the
-- server lost its memory may have been found while the lease stood.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('DEL', KEYS[1])
if ARGV[2] == '1' or redis.call('GET', KEYS[2]) == ARGV[1] then
    redis.call('DEL', KEYS[2])
end
return 1
