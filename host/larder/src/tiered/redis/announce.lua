-- Appends a record to the log of a bus, and rings the bell.
-- KEYS: state, log. ARGV: an epoch that nobody has had yet, the lease in ms, how many records are kept, the bell, the record.
-- Answers the epoch, the record's number, and 1 if all members are known.
local state, log = KEYS[1], KEYS[2]
local run = redis.pcall('INFO', 'server')
run = type(run) == 'string' and string.match(run, 'run_id:(%w+)') or ''
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = redis.call('HMGET', state, 'epoch', 'run', 'born')
if not found[1] or found[2] ~= run then
  redis.call('UNLINK', state, log)
  found = {ARGV[1], run, string.format('%.0f', now)}
  redis.call('HSET', state, 'epoch', found[1], 'run', run, 'born', found[3], 'last', '0')
end
-- As in invalidate.lua, for where the memory is full.
redis.call('HDEL', state, '')
local last = redis.call('HINCRBY', state, 'last', 1)
redis.call('HSET', log, last, ARGV[5])
redis.call('HDEL', log, string.format('%.0f', last - ARGV[3]))
redis.call('PUBLISH', ARGV[4], last)
-- Members of the epoch before may have a lease still.
return {found[1], last, now - found[3] > 2 * ARGV[2] and 1 or 0}
