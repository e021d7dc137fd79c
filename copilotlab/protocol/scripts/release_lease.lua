-- Give the lease back, if it is still the caller's.
--
-- KEYS  lease, owed
-- ARGV  lease's value, '1' after a whole rebuild
-- returns 1, or 0 if another node has the lease, or none
--
-- After a whole rebuild none is owed any more. After anything less, one that was owed still is, since the server's loss of
-- memory may have been noticed while the lease stood; only a mark that was made for this lease alone is taken back.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('DEL', KEYS[1])
if ARGV[2] == '1' or redis.call('GET', KEYS[2]) == ARGV[1] then
    redis.call('DEL', KEYS[2])
end
return 1
