-- Keeps an envelope, if nothing has happened to its key or groups since the token was taken.
-- KEYS: counters, entry. ARGV: field of the fence, fence, stamp, '1' if it is a write, lifetime in ms ('0': take away
-- what is there; '-1': without end), envelope, key, its tags.
-- Answers 1 if done, 0 if fenced.
local counters, entry, stamp = KEYS[1], KEYS[2], tonumber(ARGV[3])
local now = redis.call('HMGET', counters, 'epoch', 'n', 'lengths', ARGV[1])
-- Without counters nobody knows what has happened. A fence that has not moved is the epoch.
if not now[1] or (now[4] or now[1]) ~= ARGV[2] then return 0 end

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
  for at = 8, #ARGV do
    if is_newer('gt' .. ARGV[at]) then return 0 end
  end
end

if ARGV[4] == '1' then
  redis.call('HSETNX', counters, ARGV[1], now[1])
  redis.call('HINCRBY', counters, ARGV[1], 1)
end
if ARGV[5] == '0' then
  redis.call('UNLINK', entry)
  return 1
end
if ARGV[5] == '-1' then
  redis.call('SET', entry, ARGV[6])
else
  redis.call('SET', entry, ARGV[6], 'PX', ARGV[5])
end
-- The moment of writing, by the one clock that all readers share.
local time = redis.call('TIME')
local written = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SETRANGE', entry, 24, struct.pack('>I8I8', written, written))
return 1
