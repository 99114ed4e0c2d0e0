-- Moves the fences of keys, and takes their entries away or ends their freshness.
-- KEYS: counters, entries. ARGV: '1' if soft, for each entry the field of its fence.
local counters, soft = KEYS[1], ARGV[1] == '1'
local epoch = redis.call('HGET', counters, 'epoch')
-- Without counters, what was loaded before is fenced when they begin anew.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function ends(entry)
  -- What is at fixed places, and four numbers behind it, each of ten bytes at most.
  local header = redis.pcall('GETRANGE', entry, 0, 73)
  -- Of another version, or of another kind: it cannot be ended, so it goes.
  if type(header) ~= 'string' or #header < 34 or string.sub(header, 1, 5) ~= 'LRDR\2' then return redis.call('UNLINK', entry) end
  local at = 35
  local function number()
    local number, unit = 0, 1
    repeat
      local byte = string.byte(header, at) or 0
      number, unit, at = number + byte % 128 * unit, unit * 128, at + 1
    until byte < 128
    return number
  end
  local function window()
    local window = number()
    return window == 0 and 2 ^ 64 or window - 1
  end
  number() -- the stamp
  local fresh, stale, rescue = window(), window(), window()
  local written, _, ended = struct.unpack('>I6I2I6', header, 11)
  local till = math.min(written + fresh, ended, now)
  local last = till + math.max(stale, rescue)
  if last <= now then return redis.call('UNLINK', entry) end
  redis.call('SETRANGE', entry, 18, moment(till))
  if last < 2 ^ 50 then redis.call('PEXPIREAT', entry, string.format('%.0f', last)) end
end

-- Where the memory is full Redis refuses a script's first write, if that may need more, and none after it: so the first one is
-- another, which does nothing. To be heard must not depend on there being room.
redis.call('HDEL', counters, '')
for at = 2, #KEYS do
  if epoch then
    redis.call('HSETNX', counters, ARGV[at], epoch)
    redis.call('HINCRBY', counters, ARGV[at], 1)
  end
  if soft then ends(KEYS[at]) else redis.call('UNLINK', KEYS[at]) end
end
return 1
