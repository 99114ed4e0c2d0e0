-- A moment as an envelope has it: six bytes, and the check of them.
local function moment(milliseconds)
  local low = milliseconds % 2 ^ 32
  local check = bit.bxor(math.floor(milliseconds / 2 ^ 32), math.floor(low / 65536), low % 65536, 65535)
  return struct.pack('>I6I2', milliseconds, check)
end

