"""Owns the Lua scripts, one per atomic step; knows the stream commands of Redis 7.0 and nothing of Python.

Every script begins alike: KEYS[1..3] are epoch, sentinel and the set of stages; ARGV[1..3] are the caller's
epoch ('0': a worker, not fenced), its token and its consumer name. A script that writes adds first and
deletes last, because Redis does not roll back: an error on the way can double a group, which the learner's
memory of group ids undoes, but never lose one.
"""

from __future__ import annotations

from services.common.stages.link import Script

_PRELUDE = """
local GROUP = 'workers'

-- nil, or the error to return: only the learner that began last may go on.
local function fence()
  if ARGV[1] == '0' then return nil end
  local epoch, token = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])
  if not epoch or not token then
    return redis.error_reply('EMPTIED the server came back empty: scan, then restore the sentinel')
  end
  if epoch ~= ARGV[1] or token ~= ARGV[2] then
    return redis.error_reply('FENCED another learner began epoch ' .. epoch .. '; this one is ' .. ARGV[1])
  end
  return nil
end

-- As pcall, but what the user may not do is an error of the script, never an answer that it goes on with.
local function try(...)
  if redis.acl_check_cmd(...) then return redis.pcall(...) end
  return redis.call(...)
end

-- nil, or the error to return: asked before an entry is added elsewhere, or each try would leave one more there.
local function permitted(key, ...)
  for _, command in ipairs({...}) do
    if not redis.acl_check_cmd(command, key, GROUP, '0-0') then
      return redis.error_reply('NOPERM the user may not ' .. command .. ' on ' .. key)
    end
  end
  return nil
end

-- The position of a field's value in a flat list of names and values, or nil.
local function position(fields, name)
  for at = 1, #fields, 2 do
    if fields[at] == name then return at + 1 end
  end
  return nil
end

local function put(fields, name, value)
  local at = position(fields, name)
  if at then
    fields[at] = value
  else
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
end

-- The entry's fields if the caller still owns it: same consumer, same delivery count, same group id.
local function owned(key, id, deliveries, group_id)
  local pending = try('XPENDING', key, GROUP, id, id, 1)
  if pending.err or not pending[1] then return nil end
  if pending[1][2] ~= ARGV[3] or pending[1][4] ~= tonumber(deliveries) then return nil end
  local entry = redis.call('XRANGE', key, id, id)[1]
  if not entry then return nil end
  local at = position(entry[2], 'group_id')
  if (at and entry[2][at] or '') ~= group_id then return nil end
  return entry[2]
end

-- nil, or the error to return: a destination is a stream or absent; a new one is noted in the set of stages.
local function open(key)
  local kind = redis.call('TYPE', key).ok
  if kind == 'stream' then return nil end
  if kind ~= 'none' then
    return redis.error_reply('WRONGDEST ' .. key .. ' holds a ' .. kind .. ', not a stream')
  end
  local stage = string.match(key, '^.-:stage:(.+)$')
  if stage then redis.call('SADD', KEYS[3], stage) end
  return nil
end

local function join(key)
  local failure = open(key)
  if failure then return failure end
  local made = try('XGROUP', 'CREATE', key, GROUP, '0', 'MKSTREAM')
  if type(made) == 'table' and made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then
    return made
  end
  return nil
end

local function remove(key, id)
  redis.call('XACK', key, GROUP, id)
  redis.call('XDEL', key, id)
end

local failure = fence()
"""

_FENCED = "if failure then return failure end\n"


def _script(body: str, *, fenced: bool = True) -> Script:
    return Script(_PRELUDE + (_FENCED if fenced else "") + body)


# KEYS[4..]: streams to join.
JOIN = _script("""
for at = 4, #KEYS do
  failure = join(KEYS[at])
  if failure then return failure end
end
return 1
""")

# KEYS[4]: stream. ARGV[4]: lease in milliseconds. Answers {id, fields, deliveries} or {}.
# Where nobody let a lease end, two things more. What is idle for 0 ms is held as of now: nothing new for what was just
# taken or renewed, but what was taken before the server's clock went back says so too, and would be its owner's, dead
# or not, until the clock is there again. And consumers that hold nothing and were silent for ten leases are swept away.
CLAIM = _script("""
local cursor = '0-0'
repeat
  local reply = try('XAUTOCLAIM', KEYS[4], GROUP, ARGV[3], ARGV[4], cursor, 'COUNT', 1)
  if reply.err then return {} end
  cursor = reply[1]
  local entry = reply[2][1]
  if entry then
    local pending = redis.call('XPENDING', KEYS[4], GROUP, entry[1], entry[1], 1)
    return {entry[1], entry[2], pending[1][4]}
  end
until cursor == '0-0'
local from, page = '-', nil
repeat
  page = redis.call('XPENDING', KEYS[4], GROUP, from, '+', 500)
  for _, held in ipairs(page) do
    if held[3] == 0 then redis.call('XCLAIM', KEYS[4], GROUP, held[2], 0, held[1], 'JUSTID') end
    from = '(' .. held[1]
  end
until #page < 500
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[4], GROUP)) do
  local name = consumer[position(consumer, 'name')]
  if name ~= ARGV[3] and consumer[position(consumer, 'pending')] == 0
      and consumer[position(consumer, 'idle')] > 10 * tonumber(ARGV[4]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[4], GROUP, name)
  end
end
return {}
""")

# Advance, hand back, fail: all are this. ARGV[4]: how many destinations follow at KEYS[4]; sources come after
# them. Rows of ARGV: source, destination (positions in KEYS), id, deliveries, group id, attempts, whether a
# payload comes, checksum, payload. Answers 1 or 0 per row.
MOVE_WIDTH = 9
MOVE = _script("""
for at = 4, 3 + tonumber(ARGV[4]) do
  failure = open(KEYS[at])
  if failure then return failure end
end
for at = 4 + tonumber(ARGV[4]), #KEYS do
  failure = permitted(KEYS[at], 'XACK', 'XDEL')
  if failure then return failure end
end
local moved = {}
for row = 5, #ARGV, 9 do
  local source, id = KEYS[tonumber(ARGV[row])], ARGV[row + 2]
  local fields = owned(source, id, ARGV[row + 3], ARGV[row + 4])
  if fields then
    put(fields, 'attempts', ARGV[row + 5])
    if ARGV[row + 6] == '1' then
      put(fields, 'checksum', ARGV[row + 7])
      put(fields, 'payload', ARGV[row + 8])
    end
    redis.call('XADD', KEYS[tonumber(ARGV[row + 1])], '*', unpack(fields))
    remove(source, id)
  end
  moved[#moved + 1] = fields and 1 or 0
end
return moved
""")

# Rows of ARGV[4..]: position of the stream in KEYS, id, deliveries, group id. Answers 1 or 0 per row.
RENEW = _script("""
local kept = {}
for row = 4, #ARGV, 4 do
  local key, id = KEYS[tonumber(ARGV[row])], ARGV[row + 1]
  local ours = owned(key, id, ARGV[row + 2], ARGV[row + 3])
  if ours then redis.call('XCLAIM', key, GROUP, ARGV[3], 0, id, 'JUSTID') end
  kept[#kept + 1] = ours and 1 or 0
end
return kept
""")

# KEYS[4]: dead letters, KEYS[5]: stream. ARGV[4..8]: id, deliveries, group id, stage, reason.
BURY = _script("""
failure = open(KEYS[4]) or permitted(KEYS[5], 'XACK', 'XDEL')
if failure then return failure end
local fields = owned(KEYS[5], ARGV[4], ARGV[5], ARGV[6])
if not fields then return 0 end
redis.call('XADD', KEYS[4], '*', 'stage', ARGV[7], 'reason', ARGV[8], unpack(fields))
remove(KEYS[5], ARGV[4])
return 1
""")

# KEYS[4..]: streams.
LEAVE = _script("""
for at = 4, #KEYS do
  local consumers = try('XINFO', 'CONSUMERS', KEYS[at], GROUP)
  if not consumers.err then
    for _, consumer in ipairs(consumers) do
      if consumer[position(consumer, 'name')] == ARGV[3] and consumer[position(consumer, 'pending')] == 0 then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[at], GROUP, ARGV[3])
      end
    end
  end
end
return 1
""")

CHECK = _script("return 1\n")

# KEYS[4..]: streams to join. ARGV[4]: the least epoch that counts as taken. Answers the new epoch.
START_EPOCH = _script(
    """
local epoch = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[4])) + 1
for at = 4, #KEYS do
  failure = join(KEYS[at])
  if failure then return failure end
end
redis.call('SET', KEYS[1], string.format('%d', epoch))
redis.call('SET', KEYS[2], ARGV[2])
return epoch
""",
    fenced=False,
)

# KEYS[4..]: streams to join. Writes only over nothing, or over what is its own already.
RESTORE = _script(
    """
local epoch, token = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])
if (token and token ~= ARGV[2]) or (epoch and tonumber(epoch) > tonumber(ARGV[1])) then
  return redis.error_reply('FENCED another learner has begun; this one is of epoch ' .. ARGV[1])
end
for at = 4, #KEYS do
  failure = join(KEYS[at])
  if failure then return failure end
end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], ARGV[2])
return 1
""",
    fenced=False,
)

# KEYS[4]: nonce of the last admission, KEYS[5]: stream. ARGV[4]: nonce, ARGV[5]: how many arguments an entry
# takes; then the entries.
ADMIT = _script("""
if redis.call('GET', KEYS[4]) == ARGV[4] then return 0 end
failure = open(KEYS[5]) or permitted(KEYS[4], 'SET')
if failure then return failure end
local width = tonumber(ARGV[5])
for row = 6, #ARGV, width do
  redis.call('XADD', KEYS[5], '*', unpack(ARGV, row, row + width - 1))
end
redis.call('SET', KEYS[4], ARGV[4])
return 1
""")

# KEYS[4]: stream. Rows of ARGV[4..]: id, group id.
ACKNOWLEDGE = _script("""
for row = 4, #ARGV, 2 do
  local entry = redis.call('XRANGE', KEYS[4], ARGV[row], ARGV[row])[1]
  local at = entry and position(entry[2], 'group_id')
  if at and entry[2][at] == ARGV[row + 1] then remove(KEYS[4], ARGV[row]) end
end
return 1
""")

# KEYS[4]: stream. ARGV[4]: idle milliseconds after which another's entry becomes ours.
# Answers id, deliveries, id, deliveries, … of all that is ours then. JUSTID counts as no delivery.
ADOPT = _script("""
local found, from = {}, '-'
repeat
  local page = try('XPENDING', KEYS[4], GROUP, from, '+', 500)
  if page.err then return {} end
  for _, pending in ipairs(page) do
    local id, ours = pending[1], pending[2] == ARGV[3]
    if not ours and pending[3] >= tonumber(ARGV[4]) then
      redis.call('XCLAIM', KEYS[4], GROUP, ARGV[3], 0, id, 'JUSTID')
      ours = true
    end
    if ours then
      found[#found + 1] = id
      found[#found + 1] = pending[4]
    end
    from = '(' .. id
  end
until #page < 500
return found
""")

# KEYS[4]: stream. ARGV[4..]: ids. Answers {id, fields} of those that are there, lets go of the others.
FETCH = _script("""
local found = {}
for at = 4, #ARGV do
  local entry = redis.call('XRANGE', KEYS[4], ARGV[at], ARGV[at])[1]
  if entry then
    found[#found + 1] = entry
  else
    redis.call('XACK', KEYS[4], GROUP, ARGV[at])
  end
end
return found
""")

# KEYS[4..]: all streams, as the set of stages named them before. ARGV[4]: lease in milliseconds.
# Answers nil if the set has grown since, else sentinel and {length, pending, alive, group id, …} per stream.
# A fenced learner is refused; an emptied server is not, since finding that out is what a scan is for.
SCAN = _script(
    """
local sentinel = redis.call('EXISTS', KEYS[1], KEYS[2]) == 2 and 1 or 0
if failure and sentinel == 1 then return failure end
if redis.call('SCARD', KEYS[3]) ~= #KEYS - 3 then return false end
local views = {sentinel}
for at = 4, #KEYS do
  local key, pending, alive = KEYS[at], 0, 0
  local groups = try('XINFO', 'GROUPS', key)
  if not groups.err and groups[1] then
    pending = groups[1][position(groups[1], 'pending')]
    for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', key, GROUP)) do
      if consumer[position(consumer, 'idle')] < tonumber(ARGV[4]) then alive = alive + 1 end
    end
  end
  local view, from = {0, pending, alive}, '-'
  if redis.call('TYPE', key).ok == 'stream' then
    view[1] = redis.call('XLEN', key)
    repeat
      local page = redis.call('XRANGE', key, from, '+', 'COUNT', 64)
      for _, entry in ipairs(page) do
        local found = position(entry[2], 'group_id')
        view[#view + 1] = found and entry[2][found] or ''
        from = '(' .. entry[1]
      end
    until #page < 64
  end
  views[#views + 1] = view
end
return views
""",
    fenced=False,
)

# KEYS[4]: dead letters, KEYS[5]: stream. ARGV[4]: letter id, ARGV[5]: its stage as seen before.
REQUEUE = _script("""
local letter = redis.call('XRANGE', KEYS[4], ARGV[4], ARGV[4])[1]
if not letter then return 0 end
local fields = {}
for at = 1, #letter[2], 2 do
  local name, value = letter[2][at], letter[2][at + 1]
  if name == 'stage' and value ~= ARGV[5] then return 0 end
  if name ~= 'stage' and name ~= 'reason' then put(fields, name, value) end
end
failure = open(KEYS[5]) or permitted(KEYS[4], 'XDEL')
if failure then return failure end
put(fields, 'attempts', '0')
put(fields, 'requeued', '1')
redis.call('XADD', KEYS[5], '*', unpack(fields))
redis.call('XDEL', KEYS[4], ARGV[4])
return 1
""")
