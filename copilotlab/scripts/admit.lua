-- May a node embed these changes now? Both flags and the claims, in one round trip.
--
-- KEYS  lease, owed, then one claim a change
-- ARGV  node, model, lease of the caller's batch ('' if it asks for no batch), claim's milliseconds,
--       then one revision a change: the least that the caller needs
-- returns lease ('' if nobody has it), owed (0 or 1), then 1 for each change that is the caller's to embed
--
-- Nothing is claimed while another node's batch will do it, or the caller is about to begin one (owed, no lease), nor for
-- a batch whose lease is gone. A batch of another model concerns nobody here. A claim's value is the node that embeds,
-- or '=' and the revision at which it was sent; one that was sent below the revision that is needed is of an earlier
-- life of the same words, and does not count.

local lease = redis.call('GET', KEYS[1]) or ''
local owed = redis.call('EXISTS', KEYS[2])
local model = string.match(lease, '^%d+ (%x+) ')
local admitted = (lease == '' and owed == 0) or (model and model ~= ARGV[2])
if ARGV[3] ~= '' then
    admitted = lease == ARGV[3]
end
local answer = {lease, owed}
for i = 3, #KEYS do
    answer[i] = 0
    if admitted then
        local held = redis.call('GET', KEYS[i])
        local sent = held and tonumber(string.match(held, '^=(%d+)$'))
        if not held or held == ARGV[1] or (sent and sent < tonumber(ARGV[i + 2])) then
            redis.call('SET', KEYS[i], ARGV[1], 'PX', tonumber(ARGV[4]))
            answer[i] = 1
        end
    end
end
return answer
