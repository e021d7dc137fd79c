-- Part of every script that asks who holds the lease, or a claim. ALIVE: the prefix of all sessions' signs of life.

local function lives(session)
    return redis.call('EXISTS', ALIVE .. session) == 1
end

-- Return the lease, or '' if it is free: its value is no lease of ours, or its holder is gone.
local function standing(lease)
    local session = string.match(lease, '^%d+ %x+ (%x+) ')
    return session and lives(session) and lease or ''
end

-- Return the count of epochs, or 0 for what is no count: what others wrote there must not fence batches for ever.
local function counted(text)
    local count = text and string.match(text, '^%d+$') and tonumber(text) or 0
    return count < 2^52 and count or 0
end
