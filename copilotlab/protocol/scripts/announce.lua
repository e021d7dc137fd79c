-- Send one change, and note on its claim that it was sent, so that a node that hears of it late does not embed it.
--
-- KEYS  claim
-- ARGV  channel, payload, the claim's new value, claim's milliseconds
-- returns how many nodes listened

redis.call('SET', KEYS[1], ARGV[3], 'PX', tonumber(ARGV[4]))
return redis.call('PUBLISH', ARGV[1], ARGV[2])
