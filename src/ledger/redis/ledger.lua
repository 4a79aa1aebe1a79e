-- The operation table on one repository's hash, for a set of tags at one instant.
--
-- KEYS[1]  the repository's hash: tag → entry (see codec.rs), and fields that begin with a NUL:
--          "\0seq" the sequence number, "\0freed" the freed number, "\0del:" .. digest a delete mark,
--          "\0off:" .. tag the sequence number up to which a restored tag is known to be free,
--          "\0fell" the sequence number that was left when the repository was restored last
-- KEYS[2]  the hash of the ledger itself, with a count of what was freed in all repositories
-- KEYS[3]  a sorted set: repositories by that count when something was freed in them last.
--          A Cluster, where the three have no slot in common, gets the first one alone
-- ARGV[1]  C(laim) B(ind) D: adopt, A(bort) R(elease) W(ithdraw) X: supersede, G: begin a delete, E(nd a delete)
--          I(nvalidate): raises the freed number alone. T(ouch): changes nothing. O(ffer): restores. With another key: F(reeing) is announced, L(oss) is published
--          A `+` behind it: WAIT follows, so leave a write even where nothing changes. Otherwise a
--          call that is repeated would wait for nothing, and an earlier one's write may be lost
-- ARGV[2]  the digest as stored, algorithm byte and hash; for a release, the token: the entry's
--          time and sequence number, as stored
-- ARGV[3]  the attempt, 16 bytes; for the end of a delete, all that end, the caller's own first
-- ARGV[4]  now, 5 bytes: for people, no decision depends on it
-- ARGV[5]  the origin, 1 byte (adopt); K(ept) W(ithdrawn) R(eleased) N(ot deleted) for the end of a delete
-- ARGV[6]  the freed number that the caller has read (bind, adopt)
-- ARGV[7]  the repository as KEYS[3] names it
-- ARGV[8]  the highest sequence number that the caller has seen, its ledger's id, and the last loss that it
--          knows of, in [9] and [10]: nothing new is bound in a ledger that has lost entries since
--          To restore, [6] is the sequence number up to which this repository can't have been lost
-- ARGV[11] how many tags follow; then the tags; then, to supersede, as many tokens; or, to restore, as
--          many sequence numbers and as many entries, which are empty for a tag that was free
-- Returns { status, sequence, freed number before, mark before or "", entry before of each tag or "" }
local key, op, digest, attempt, now, origin = KEYS[1], ARGV[1]:sub(1, 1), ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local waits = ARGV[1]:sub(2) == '+'

if op == 'F' then
  -- In a Cluster. KEYS[1] is the sorted set of ARGV[7]; the count is the score of its empty member.
  local all = redis.call('ZADD', key, 'INCR', 1, '')
  redis.call('ZADD', key, all, ARGV[7])
  return all
elseif op == 'L' then
  -- KEYS[1] is the ledger's own hash. ARGV[2] becomes its last loss, if that is ARGV[3] still.
  if (redis.call('HGET', key, 'losses') or '') == ARGV[3] then redis.call('HSET', key, 'losses', ARGV[2]) end
  return redis.call('HGET', key, 'losses')
end

local LAST = 11
local count = tonumber(ARGV[LAST])
local SEQUENCE, FREED, MARK = '\0seq', '\0freed', '\0del:' .. digest
local sequence = tonumber(redis.call('HGET', key, SEQUENCE) or '0')
local freed = tonumber(redis.call('HGET', key, FREED) or '0')
local mark = redis.call('HGET', key, MARK) or ''

if op == 'C' or op == 'D' then
  local lost = sequence < tonumber(ARGV[8])
  if KEYS[2] then
    local ledger = redis.call('HMGET', KEYS[2], 'id', 'losses')
    lost = lost or (ledger[1] or '') ~= ARGV[9] or (ledger[2] or '') ~= ARGV[10]
  end
  if lost then return { 'lost', sequence, freed, mark } end
end

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
    local entry = { sealed = true, token = value:sub(3, at - 1), withdrawn = value:byte(2) >= 128,
                    origin = string.char(value:byte(2) % 128) }
    entry.digest = value:sub(entry.withdrawn and at + 5 or at)
    return entry
  end
  local at = after_varint(value, 7)
  local size = value:byte(at) == 1 and 33 or 65
  return { token = value:sub(2, at - 1), digest = value:sub(at, at + size - 1),
           head = value:sub(1, at + size - 1), owners = value:sub(at + size) }
end

local function without(owners, some)
  local left = ''
  for at = 1, #owners, 16 do
    local owner = owners:sub(at, at + 15)
    local found = false
    for other = 1, #some, 16 do
      found = found or some:sub(other, other + 15) == owner
    end
    if not found then left = left .. owner end
  end
  return left
end

local function withdrawn(value, entry)
  return 'S' .. string.char(value:byte(2) + 128) .. entry.token .. now .. entry.digest
end

-- nil: keep. A table: why the whole set is left as it is. '': remove. Otherwise the new value.
local STANDS, GONE, FREE, DELETING = { 'stands' }, { 'gone' }, { 'freed' }, { 'deleting' }
local function change(value, n)
  local stamp = now .. varint(sequence + 1)
  local entry = value and parse(value)
  local same = entry and entry.digest == digest
  if op == 'C' then
    if entry and not same then return STANDS end
    if entry and (entry.sealed or without(entry.owners, attempt) ~= entry.owners) then return nil end
    if mark ~= '' then return DELETING end
    return entry and value .. attempt or 'P' .. stamp .. digest .. attempt
  elseif op == 'B' then
    if entry and not same then return STANDS end
    if not entry or not entry.sealed and without(entry.owners, attempt) == entry.owners then
      return mark ~= '' and DELETING or GONE
    end
    if not entry.sealed then
      return 'S' .. origin .. stamp .. digest
    end
    if mark ~= '' then return DELETING end
    if not entry.withdrawn then return nil end
    if freed ~= tonumber(ARGV[6]) then return FREE end
    return 'S' .. string.char(value:byte(2) - 128) .. entry.token:sub(1, 5) .. varint(sequence + 1) .. entry.digest
  elseif op == 'D' then
    if entry and not same then return STANDS end
    if entry and entry.sealed then return nil end
    if freed ~= tonumber(ARGV[6]) then return FREE end
    if mark ~= '' then return DELETING end
    return 'S' .. origin .. stamp .. digest
  elseif op == 'A' then
    if not same or entry.sealed then return nil end
    local left = without(entry.owners, attempt)
    if left == entry.owners then return nil end
    return left == '' and '' or entry.head .. left
  elseif op == 'R' then
    if entry and entry.sealed and entry.token == digest then return '' end
    return nil
  elseif op == 'W' or (op == 'E' and origin == 'W') then
    if not same or not entry.sealed or entry.withdrawn then return nil end
    return withdrawn(value, entry)
  elseif op == 'X' then
    if entry and entry.token == ARGV[LAST + count + n] then return '' end
    return nil
  elseif op == 'E' then
    if same and origin == 'R' then return '' end
    return nil
  elseif op == 'G' or op == 'I' or op == 'T' then
    return nil
  end
  return redis.error_reply('ERR unknown operation')
end

-- WAIT waits for what its connection wrote, so something is written.
local function touch()
  if waits and sequence > 0 then redis.call('HSET', key, SEQUENCE, string.format('%d', sequence)) end
end

local function tell_freed()
  if KEYS[3] then
    local all = tonumber(redis.call('HGET', KEYS[2], 'freed') or '0') + 1
    redis.call('HSET', KEYS[2], 'freed', string.format('%d', all))
    redis.call('ZADD', KEYS[3], all, ARGV[7])
  end
end

-- Which of two states of a tag is the newer one, as `Age` in table.rs has it. Lua compares texts by
-- the server's locale, and here it is bytes that count.
local function rank(entry)
  if not entry then return 3 end
  return entry.sealed and (entry.withdrawn and 2 or 1) or 0
end

local function bytes_above(one, other)
  for at = 1, math.max(#one, #other) do
    local a, b = one:byte(at) or -1, other:byte(at) or -1
    if a ~= b then return a > b end
  end
  return false
end

local function is_newer(one, one_sequence, other, other_sequence)
  if one_sequence ~= other_sequence then return one_sequence > other_sequence end
  if rank(one) ~= rank(other) then return rank(one) > rank(other) end
  if not one then return false end
  return bytes_above(one.digest .. (one.origin or ''), other.digest .. (other.origin or ''))
end

local function sequence_of(entry)
  local number, scale = 0, 1
  for at = 6, #entry.token do
    number = number + entry.token:byte(at) % 128 * scale
    scale = scale * 128
  end
  return number
end

-- Far above all that was ever offered, so that what is bound from here on is newer than any late offer.
local ABOVE = 1000000

if op == 'O' then
  local top, changed, frees, after = 0, false, false, {}
  for n = 1, count do top = math.max(top, tonumber(ARGV[LAST + count + n])) end
  local raised = sequence < top
  -- What replicas are known to have had is there, or something newer of that tag is; unless even less
  -- is left, as of an old file.
  local kept = tonumber(ARGV[6])
  if kept > (raised and sequence or tonumber(redis.call('HGET', key, '\0fell') or sequence)) then kept = 0 end
  for n = 1, count do
    local tag, number, value = ARGV[LAST + n], tonumber(ARGV[LAST + count + n]), ARGV[LAST + 2 * count + n]
    local OFF = '\0off:' .. tag
    local has = redis.call('HGET', key, tag)
    local is = has and parse(has)
    local off = redis.call('HGET', key, OFF)
    local at = is and sequence_of(is) or tonumber(off or '-1')
    local offered = value ~= '' and parse(value) or nil
    if number > kept and is_newer(offered, number, is, at) then
      changed = true
      if is then frees = true end
      if offered then
        redis.call('HSET', key, tag, value)
        if off then redis.call('HDEL', key, OFF) end
      else
        redis.call('HSET', key, OFF, string.format('%d', number))
        if is then redis.call('HDEL', key, tag) end
      end
      after[n] = 'restored'
    else
      local same = not is_newer(is, at, offered, number) and not is_newer(offered, number, is, at)
      after[n] = same and 'stands' or 'newer'
    end
  end
  if raised then redis.call('HSET', key, '\0fell', string.format('%d', sequence)) end
  if raised then sequence = top + ABOVE elseif changed then sequence = sequence + 1 end
  if changed or raised or waits then redis.call('HSET', key, SEQUENCE, string.format('%d', sequence)) end
  if raised or frees then
    -- No freed number is above its repository's sequence number: this one was never seen.
    freed = raised and sequence or freed + 1
    redis.call('HSET', key, FREED, string.format('%d', freed))
    tell_freed()
  end
  return { 'done', sequence, freed, '', unpack(after) }
end

local before, puts, refused = {}, {}, nil
-- What stands comes before what is gone, and so on, as in the table.
local RANK = { stands = 4, gone = 3, freed = 2, deleting = 1 }
local frees = op == 'I' or op == 'E' and origin ~= 'N'
for n = 1, count do
  local tag = ARGV[LAST + n]
  local value = redis.call('HGET', key, tag)
  before[n] = value or ''
  local new = change(value, n)
  if type(new) == 'table' then
    if new['err'] then return new end
    if not refused or RANK[new[1]] > RANK[refused] then refused = new[1] end
  elseif new then
    puts[tag] = new
    local was = value and parse(value)
    local is = new ~= '' and parse(new)
    if was and (not is or (is.withdrawn and not was.withdrawn)) then frees = true end
  end
end
if refused then
  -- The caller goes by what it is told is there: no master alone may have it.
  touch()
  return { refused, sequence, freed, mark, unpack(before) }
end

if op == 'G' then
  local others = without(mark:sub(6), attempt)
  local since = mark == '' and now or mark:sub(1, 5)
  redis.call('HSET', key, MARK, since .. mark:sub(6) .. (others == mark:sub(6) and attempt or ''))
elseif op == 'E' then
  local own = attempt:sub(1, 16)
  if mark == '' or without(mark:sub(6), own) == mark:sub(6) then
    touch()
    return { 'nomark', sequence, freed, mark, unpack(before) }
  end
  local left = without(mark:sub(6), attempt)
  if left == '' then redis.call('HDEL', key, MARK) else redis.call('HSET', key, MARK, mark:sub(1, 5) .. left) end
end

local changes = next(puts) ~= nil or frees
if changes then
  sequence = sequence + 1
  redis.call('HSET', key, SEQUENCE, string.format('%d', sequence))
  for tag, value in pairs(puts) do
    if value == '' then redis.call('HDEL', key, tag) else redis.call('HSET', key, tag, value) end
  end
else
  touch()
end
if frees then
  redis.call('HSET', key, FREED, string.format('%d', freed + 1))
  -- What others remember is still so.
  if op ~= 'I' then tell_freed() end
end
return { 'done', sequence, freed, mark, unpack(before) }
