-- Adds the entries of a batch to their streams and moves the sink's mark: all of it or nothing.
-- What a script has written stays when it fails, so all that can be looked at is looked at first, and the rest is taken back.
--
-- KEYS: the mark, then the streams.
-- ARGV: 'look' | 'claim', FENCE
--     | 'add', FENCE, NEXT FENCE, EPOCH, SEQ, MARK, UPDATED_AT, MAXLEN or '', then of each entry:
--       the number of its stream, how many texts follow, and these: its fields and values.
local what, mark = ARGV[1], KEYS[1]

local function try(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then
    return nil, reply
  end
  return reply
end

local kinds = {}

-- What of the keys is something else than it should be: number, kind, number, kind.
local function others()
  local found = {}
  for at, key in ipairs(KEYS) do
    local kind, failed = try('TYPE', key)
    if failed then
      return nil, failed
    end
    kinds[at] = kind.ok
    if kind.ok ~= 'none' and kind.ok ~= (at == 1 and 'hash' or 'stream') then
      found[#found + 1] = at - 1
      found[#found + 1] = kind.ok
    end
  end
  return found
end

local found, failed = others()
if failed then
  return failed
end
if #found > 0 then
  return {'others', unpack(found)}
end

if what ~= 'add' then
  -- Of a hash, or of nothing, neither of the two makes anything; only rights, memory and the like can be in their way.
  for _, command in ipairs({{'XADD', mark, 'NOMKSTREAM', '*', 'look', ''}, {'XDEL', mark, '0-0'}}) do
    local _, failed = try(unpack(command))
    if failed and string.sub(failed.err, 1, 9) ~= 'WRONGTYPE' then
      return failed
    end
  end
end

local old, failed = try('HMGET', mark, 'fence', 'epoch', 'seq', 'mark', 'updated_at')
if failed then
  return failed
end
for at = 1, 5 do
  old[at] = old[at] or ''
end

local function move(fence, epoch, seq, text, updated_at)
  return try('HSET', mark, 'fence', fence, 'epoch', epoch, 'seq', seq, 'mark', text, 'updated_at', updated_at)
end

if what == 'look' then
  -- What could only be tried by writing is asked for, where the server can be asked (7.0).
  for _, command in ipairs(redis.acl_check_cmd and {{'HSET', mark, 'a', 'b'}, {'EVALSHA', 'a', '1', mark}} or {}) do
    if not redis.acl_check_cmd(unpack(command)) then
      return redis.error_reply("NOPERM this user has no permissions to run the '" .. command[1] .. "' command")
    end
  end
  return {'seen', kinds[2] or ''}
end

if what == 'claim' then
  local _, failed = move(ARGV[2], old[2], old[3], old[4], old[5])
  return failed or {'claimed', old[2], old[3], old[4]}
end

if old[1] ~= ARGV[2] then
  return {'moved', old[1]}
end
local _, failed = move(ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
if failed then
  return failed
end
-- Nearly all of the time is spent here: nothing is called, copied or kept for an entry that need not be.
local pcall, maxlen, at, ids, count = redis.pcall, ARGV[8], 9, {}, 0
while at <= #ARGV do
  local last, reply = at + 1 + ARGV[at + 1], nil
  if maxlen == '' then
    reply = pcall('XADD', KEYS[ARGV[at] + 1], '*', unpack(ARGV, at + 2, last))
  else
    reply = pcall('XADD', KEYS[ARGV[at] + 1], 'MAXLEN', '~', maxlen, '*', unpack(ARGV, at + 2, last))
  end
  if type(reply) == 'table' then
    move(unpack(old))
    at = 9
    for n = 1, count do
      redis.call('XDEL', KEYS[ARGV[at] + 1], ids[n])
      at = at + 2 + ARGV[at + 1]
    end
    return {'refused', count, reply.err}
  end
  count = count + 1
  ids[count] = reply
  at = last + 1
end
return {'added'}
