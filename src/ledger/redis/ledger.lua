-- The operation table on one repository's hash, for a set of tags at one instant.
--
-- KEYS[1]  the repository's hash: tag → entry (see codec.rs), and the sequence number under "\0seq"
-- ARGV[1]  C(laim) S(eal) A(bort) R(elease) W(ithdraw) X: supersede
--          A `+` behind it: WAIT follows, so leave a write even where nothing changes. Otherwise a
--          call that is repeated would wait for nothing, and an earlier one's write may be lost
-- ARGV[2]  the digest as stored, algorithm byte and hash; for a release, the token: the entry's
--          time and sequence number, as stored
-- ARGV[3]  the attempt, 16 bytes (claim, abort)
-- ARGV[4]  now, 5 bytes: for people, no decision depends on it
-- ARGV[5]  the origin, 1 byte (seal)
-- ARGV[6…] the tags
-- Returns { "done" | "stands", sequence, entry before of each tag or "" }
local key, op, digest, attempt, now, origin = KEYS[1], ARGV[1]:sub(1, 1), ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local waits = ARGV[1]:sub(2) == '+'
local SEQUENCE = '\0seq'
local sequence = tonumber(redis.call('HGET', key, SEQUENCE) or '0')

-- Seven bits a byte, the lowest first.
local function varint(n)
  local out = ''
  while n >= 128 do
    out = out .. string.char(n % 128 + 128)
    n = math.floor(n / 128)
  end
  return out .. string.char(n)
end

local function after_varint(text, at)
  while text:byte(at) >= 128 do at = at + 1 end
  return at + 1
end

local function parse(value)
  if value:sub(1, 1) == 'S' then
    local at = after_varint(value, 8)
    local entry = { sealed = true, token = value:sub(3, at - 1), withdrawn = value:byte(2) >= 128 }
    entry.digest = value:sub(entry.withdrawn and at + 5 or at)
    return entry
  end
  local at = after_varint(value, 7)
  local size = value:byte(at) == 1 and 33 or 65
  return { digest = value:sub(at, at + size - 1), head = value:sub(1, at + size - 1), owners = value:sub(at + size) }
end

local function without(owners, one)
  local left = ''
  for at = 1, #owners, 16 do
    local owner = owners:sub(at, at + 15)
    if owner ~= one then left = left .. owner end
  end
  return left
end

-- nil: keep. false: stands. '': remove. Otherwise the new value.
local function change(value)
  local stamp = now .. varint(sequence + 1)
  local entry = value and parse(value)
  local same = entry and entry.digest == digest
  if op == 'C' then
    if not entry then return 'P' .. stamp .. digest .. attempt end
    if not same then return false end
    if entry.sealed or without(entry.owners, attempt) ~= entry.owners then return nil end
    return value .. attempt
  elseif op == 'S' then
    if not entry or (same and not entry.sealed) then return 'S' .. origin .. stamp .. digest end
    if not same then return false end
    if not entry.withdrawn then return nil end
    return 'S' .. string.char(value:byte(2) - 128) .. entry.token .. entry.digest
  elseif op == 'A' then
    if not same or entry.sealed then return nil end
    local left = without(entry.owners, attempt)
    if left == entry.owners then return nil end
    return left == '' and '' or entry.head .. left
  elseif op == 'R' then
    if entry and entry.sealed and entry.token == digest then return '' end
    return nil
  elseif op == 'W' then
    if not same or not entry.sealed or entry.withdrawn then return nil end
    return 'S' .. string.char(value:byte(2) + 128) .. entry.token .. now .. entry.digest
  elseif op == 'X' then
    return entry and '' or nil
  end
  return redis.error_reply('ERR unknown operation')
end

local before, puts, stands = {}, {}, false
for n = 6, #ARGV do
  local value = redis.call('HGET', key, ARGV[n])
  before[n - 5] = value or ''
  local new = change(value)
  if type(new) == 'table' then return new end
  if new == false then
    stands = true
  elseif new then
    puts[ARGV[n]] = new
  end
end
if stands then return { 'stands', sequence, unpack(before) } end
local changes = next(puts) ~= nil
if changes then sequence = sequence + 1 end
if changes or (waits and sequence > 0) then
  redis.call('HSET', key, SEQUENCE, string.format('%d', sequence))
  for tag, value in pairs(puts) do
    if value == '' then redis.call('HDEL', key, tag) else redis.call('HSET', key, tag, value) end
  end
end
return { 'done', sequence, unpack(before) }
