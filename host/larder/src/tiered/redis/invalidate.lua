-- Moves the fences of keys, and takes their entries away or ends their freshness.
-- KEYS: counters, entries. ARGV: '1' if soft, for each entry the field of its fence.
local counters, soft = KEYS[1], ARGV[1] == '1'
local epoch = redis.call('HGET', counters, 'epoch')
-- Without counters, what was loaded before is fenced when they begin anew.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function ends(entry)
  local header = redis.pcall('GETRANGE', entry, 0, 127)
  -- Of another version, or of another kind: it cannot be ended, so it goes.
  if type(header) ~= 'string' or #header < 128 or string.sub(header, 1, 5) ~= 'LRDR\1' then return redis.call('UNLINK', entry) end
  local written, _, ended = struct.unpack('>I8I8I8', header, 25)
  local fresh, stale, rescue = struct.unpack('>I8I8I8', header, 89)
  local till = math.min(written + fresh, ended, now)
  local last = till + math.max(stale, rescue)
  if last <= now then return redis.call('UNLINK', entry) end
  redis.call('SETRANGE', entry, 40, struct.pack('>I8I8', till, till))
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
