-- Send changes, and note on their claims that they were sent, so that a node that hears of them late does not embed them.
--
-- KEYS  one claim for each change
-- ARGV  channel, payload, claim's milliseconds, then for each change its claim's new value
-- returns how many nodes listened

for i = 1, #KEYS do
    redis.call('SET', KEYS[i], ARGV[i + 3], 'PX', tonumber(ARGV[3]))
end
return redis.call('PUBLISH', ARGV[1], ARGV[2])
