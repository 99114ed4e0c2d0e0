-- Sees to it that a bucket's counters are there, and that they are of this life of the server.
-- KEYS: counters. ARGV: an epoch that nobody has had yet.
-- Answers the epoch that there is.
local counters = KEYS[1]

local function run_of_server()
  local info = redis.pcall('INFO', 'server')
  if type(info) ~= 'string' then return '' end
  return string.match(info, 'run_id:(%w+)') or ''
end

local found = redis.call('HMGET', counters, 'epoch', 'run')
local run = run_of_server()
if found[1] and found[2] == run then return found[1] end
redis.call('UNLINK', counters)
redis.call('HSET', counters, 'epoch', ARGV[1], 'run', run, 'n', '0', 'groups', '0')
return ARGV[1]
