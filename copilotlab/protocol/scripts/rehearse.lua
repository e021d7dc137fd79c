-- Ask whether the server's access list lets this user do all that the protocol does, without doing any of it.
--
-- KEYS  any key of the namespace, by which a cluster's client finds the server
-- ARGV  pairs: a command, and the key or channel that it is for
-- returns, for each pair in order, 1 if it is allowed and 0 if not; nothing from a server that cannot be asked (Redis 6)

if not redis.acl_check_cmd then
    return {}
end
local more = {SET = {''}, GETRANGE = {'0', '0'}, PEXPIRE = {'1'}, PUBLISH = {''}, SCRIPT = {''}}
local answer = {}
for i = 1, #ARGV, 2 do
    local known, allowed = pcall(redis.acl_check_cmd, ARGV[i], ARGV[i + 1], unpack(more[ARGV[i]] or {}))
    answer[#answer + 1] = (known and allowed) and 1 or 0
end
return answer
