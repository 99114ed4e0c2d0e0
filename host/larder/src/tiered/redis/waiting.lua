-- How many members of a bus have not done a record yet.
-- KEYS: state. ARGV: the epoch, the number of the record, the member that asks, the lease in ms.
-- Answers -1 if the epoch is another one.
local state, lease = KEYS[1], tonumber(ARGV[4])
if redis.call('HGET', state, 'epoch') ~= ARGV[1] then return -1 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local fields, waiting = redis.call('HGETALL', state), 0
for at = 1, #fields, 2 do
  local member = string.match(fields[at], '^m(.+)')
  if member and member ~= ARGV[3] then
    local ends, done = string.match(fields[at + 1], '^(%d+) (%d+)')
    -- One lease more than it has, for clocks that are set.
    if now > ends + lease then
      redis.call('HDEL', state, fields[at])
    elseif tonumber(done) < tonumber(ARGV[2]) then
      waiting = waiting + 1
    end
  end
end
return waiting
