-- Read both flags, and claim what the caller may embed now, in one round trip.
--
-- KEYS  lease, owed, the caller's sign of life, then one claim for each change
-- ARGV  session, model, lease of the caller's batch ('' if it asks for no batch), claim's milliseconds, life's
--       milliseconds, signs of life, 1 if leases are fenced, then for each change the least revision that is needed
-- returns lease ('' if nobody has it), owed (0 or 1), then for each change 1 if it is the caller's to embed, else 0
--
-- Nothing is claimed while another node's batch will do it, or while a rebuild is owed that the caller is about to begin,
-- nor for a batch whose lease is gone. A batch of another model does not count. A claim's value is the session that
-- embeds, followed by '=' and the revision once the vector was sent. One that was sent below the revision that is needed
-- is from an earlier time at which the chart had the same words, and does not count. A claim of a session that is gone is
-- free, unless its vector was sent: a caller that was told of the change late has that vector already. A batch has asked
-- all nodes for it, so it takes such a claim too.

local ALIVE = ARGV[6]
--# standing
redis.call('SET', KEYS[3], '1', 'PX', tonumber(ARGV[5]))
local lease = redis.call('GET', KEYS[1]) or ''
if ARGV[7] == '1' then
    lease = standing(lease)
end
local owed = redis.call('EXISTS', KEYS[2])
local model = string.match(lease, '^%d+ (%x+) ')
local in_batch = ARGV[3] ~= ''
local admitted = (lease == '' and owed == 0) or (model and model ~= ARGV[2])
if in_batch then
    admitted = lease == ARGV[3]
end
local answer = {lease, owed}
for i = 4, #KEYS do
    answer[i - 1] = 0
    if admitted then
        local held = redis.call('GET', KEYS[i]) or ''
        local session, sent = string.match(held, '^(%x+)=?(%d*)$')
        local own = session == ARGV[1]
        local settled = tonumber(sent or '') and tonumber(sent) >= tonumber(ARGV[i + 4])
        local free
        if settled and not in_batch then
            free = false
        elseif not session or own or (sent ~= '' and not settled) then
            free = true
        else
            free = not lives(session)
        end
        if free then
            redis.call('SET', KEYS[i], ARGV[1], 'PX', tonumber(ARGV[4]))
            answer[i - 1] = 1
        end
    end
end
return answer
