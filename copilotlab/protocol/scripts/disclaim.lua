-- Give a claim back from which nothing came, if it is still the caller's.
--
-- KEYS  claim
-- ARGV  session
-- returns 1, or 0 if it ran out, its vector was sent, or it is another session's by now

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
return redis.call('DEL', KEYS[1])
