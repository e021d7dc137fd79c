-- Part of every script that asks who holds the lease, or a claim. ALIVE: the first part of the keys by which sessions live.

local function lives(session)
    return redis.call('EXISTS', ALIVE .. session) == 1
end

-- The lease, '' if nobody has it: what is no lease of ours, or of a holder that is gone, is nobody's.
local function standing(lease)
    local session = string.match(lease, '^%d+ %x+ (%x+) ')
    return session and lives(session) and lease or ''
end

-- A count of epochs, 0 if that is no count: what others wrote there does not fence batches for ever.
local function counted(text)
    local count = text and string.match(text, '^%d+$') and tonumber(text) or 0
    return count < 2^52 and count or 0
end
