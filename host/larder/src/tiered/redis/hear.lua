-- A member says how far it has come in the log of a bus, and hears what is new.
-- KEYS: state, log. ARGV: an epoch that nobody has had yet, the member, the epoch that it knows, the number of the last
-- record that it has done, the lease in ms.
-- Answers 0, the epoch, the last number, and the records; or 1, the epoch and the last number, if it has missed some. What
-- it says is not written down then: it has not dropped yet what it has.
local state, log = KEYS[1], KEYS[2]
local run = redis.pcall('INFO', 'server')
run = type(run) == 'string' and string.match(run, 'run_id:(%w+)') or ''
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = redis.call('HMGET', state, 'epoch', 'run', 'last')
if not found[1] or found[2] ~= run then
  redis.call('UNLINK', state, log)
  found = {ARGV[1], run, '0'}
  redis.call('HSET', state, 'epoch', ARGV[1], 'run', run, 'born', string.format('%.0f', now), 'last', '0')
end
local last, done = tonumber(found[3]), tonumber(ARGV[4])
if found[1] ~= ARGV[3] or done > last then return {1, found[1], last} end
local answer = {0, found[1], last}
for number = done + 1, last do
  local record = redis.call('HGET', log, string.format('%.0f', number))
  if not record then return {1, found[1], last} end
  answer[#answer + 1] = record
end
-- As in invalidate.lua, for where the memory is full.
redis.call('HDEL', state, '')
redis.call('HSET', state, 'm' .. ARGV[2], string.format('%.0f %s', now + ARGV[5], ARGV[4]))
return answer
