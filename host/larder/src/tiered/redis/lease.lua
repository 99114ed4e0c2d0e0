-- Takes a lease, or renews it for who has it.
-- KEYS: lease. ARGV: holder, time in ms.
-- Answers whether the holder has it.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
