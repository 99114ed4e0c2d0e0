-- Keeps an envelope, if nothing has happened to its key or groups since the token was taken.
-- KEYS: counters, entry. ARGV: field of the fence, fence, stamp, '1' if it is a write, lifetime in ms ('0': take away
-- what is there; '-1': without end), envelope, key, beginning, its tags. Where the beginning is not empty, the envelope that is
-- there must begin so, and gets the one that is given as its beginning instead.
-- Answers 1 if done, 0 if fenced, 2 if it does not begin so. A fill is fenced by the envelope of a later version; a write is not:
-- it would be lost.
local counters, entry, stamp = KEYS[1], KEYS[2], tonumber(ARGV[3])
local now = redis.call('HMGET', counters, 'epoch', 'n', 'lengths', ARGV[1])
-- Without counters nobody knows what has happened. A fence that has not moved is the epoch.
if not now[1] or (now[4] or now[1]) ~= ARGV[2] then return 0 end
if not tonumber(now[2]) then return redis.error_reply('ERR the counter n is not an integer') end

local function is_newer(group)
  local version = redis.call('HGET', counters, group)
  if not version then return false end
  local hard, soft = string.match(version, '^(%d+) (%d+)')
  return tonumber(hard) > stamp or tonumber(soft) > stamp
end
if stamp < tonumber(now[2]) then
  local key = ARGV[7]
  for length in string.gmatch(now[3] or '', '%d+') do
    if tonumber(length) <= #key and is_newer('gp' .. string.sub(key, 1, tonumber(length))) then return 0 end
  end
  for at = 9, #ARGV do
    if is_newer('gt' .. ARGV[at]) then return 0 end
  end
end

-- What is of another kind is replaced.
local there = redis.pcall('GETRANGE', entry, 0, math.max(#ARGV[8], 5) - 1)
if type(there) ~= 'string' then there = '' end
if ARGV[4] == '1' then
  -- As in invalidate.lua: what is only taken away is, though the memory be full.
  if ARGV[5] == '0' then redis.call('HDEL', counters, '') end
  redis.call('HSETNX', counters, ARGV[1], now[1])
  redis.call('HINCRBY', counters, ARGV[1], 1)
elseif #there >= 5 and string.sub(there, 1, 4) == 'LRDR' and string.byte(there, 5) > 2 then
  return 0
end
if ARGV[5] == '0' then
  redis.call('UNLINK', entry)
  return 1
end
if ARGV[8] ~= '' then
  if there ~= ARGV[8] then return 2 end
  -- In place, but where it is of another length.
  if #ARGV[6] == #ARGV[8] then
    redis.call('SETRANGE', entry, 0, ARGV[6])
  else
    redis.call('SET', entry, ARGV[6] .. redis.call('GETRANGE', entry, #ARGV[8], -1))
  end
  if ARGV[5] == '-1' then redis.call('PERSIST', entry) else redis.call('PEXPIRE', entry, ARGV[5]) end
elseif ARGV[5] == '-1' then
  redis.call('SET', entry, ARGV[6])
else
  redis.call('SET', entry, ARGV[6], 'PX', ARGV[5])
end
-- The moment of writing, by the one clock that all readers share.
local time = redis.call('TIME')
local written = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SETRANGE', entry, 10, moment(written))
return 1
