-- Advances the version of a group.
-- KEYS: counters. ARGV: '1' if soft, the group ('p' and the prefix, or 't' and the tag), how many records of what happened
-- are kept, how many groups are.
local counters, group = KEYS[1], 'g' .. ARGV[2]
-- Without counters no copy counts, and none that is loading will be kept.
if redis.call('EXISTS', counters) == 0 then return 1 end
-- As in invalidate.lua, for where the memory is full.
redis.call('HDEL', counters, '')
local n = redis.call('HINCRBY', counters, 'n', 1)
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))

local before = redis.call('HGET', counters, group)
local hard, soft, soft_at = '0', '0', '0'
if before then
  hard, soft, soft_at = string.match(before, '^(%d+) (%d+) (%d+)')
else
  if redis.call('HINCRBY', counters, 'groups', 1) > tonumber(ARGV[4]) then
    -- Too many to remember: all is invalidated instead, which says more than is true and never less.
    redis.call('UNLINK', counters)
    return 1
  end
  if string.sub(group, 2, 2) == 'p' then
    local lengths, length = redis.call('HGET', counters, 'lengths') or '', tostring(#group - 2)
    if not string.find(' ' .. lengths .. ' ', ' ' .. length .. ' ', 1, true) then
      redis.call('HSET', counters, 'lengths', lengths .. ' ' .. length)
    end
  end
end
if ARGV[1] == '1' then soft, soft_at = tostring(n), now else hard = tostring(n) end
local version = hard .. ' ' .. soft .. ' ' .. soft_at
redis.call('HSET', counters, group, version, 'l' .. n, version .. ' ' .. ARGV[2])
redis.call('HDEL', counters, 'l' .. string.format('%.0f', n - ARGV[3]))
return 1
