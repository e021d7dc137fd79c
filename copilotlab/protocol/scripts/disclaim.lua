-- Give a claim back, if it is still the caller's: nothing came of it.
--
-- KEYS  claim
-- ARGV  session
-- returns 1, or 0 if it ran out, was sent, or is another's by now

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
return redis.call('DEL', KEYS[1])
