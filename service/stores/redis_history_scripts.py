"""The Lua scripts of `service.stores.redis_histories`; Redis runs each of them atomically."""

from typing import Final

from service.stores.redis_pipeline import Script

TO_BE_MOVED: Final = -1
"""Result of `APPEND`, which then has stored nothing, if the old layout exists and its keys were not passed."""

# KEYS: the old stream, then four keys of each user, as in `UserKeys`; then, if the caller knows that the old layout
# exists, two keys of each user, as in `OldUserKeys`. ARGV: caps of history and event ids, seconds to live, cap of a
# bucket's stream, how many entries it drops at once, number of buckets, number of users, then eight values of each
# event, the first of them the position in KEYS of the first key of its user. Returns how many events were stored.
#
# All or none: if a command fails in the middle, because of a key of another type or a command that the user may not
# run, the script undoes what it has stored. Checking every key first would cost half as much as storing. A move from
# the old layout is not undone, so there the keys are checked first.
#
# If the old stream does not exist, no other key of the old layout does: the stream was written with every event and
# expires no sooner than a history.
#
# Ids of stream entries are made of the clock in microseconds and the position in the call, so that the streams of all
# buckets can be merged in the order of arrival. If the clock has gone back, the id is the next one of its stream.
APPEND: Final = Script("""
local call = redis.call
local history_cap, event_ids_cap, ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local stream_cap, at_once = tonumber(ARGV[4]), tonumber(ARGV[5])
local last = 4 * tonumber(ARGV[7]) + 1
local has_old = call('EXISTS', KEYS[1]) == 1
if has_old and #KEYS == last then
    return -1
end
local entries = {}
for user = 2, last, 4 do
    local stream = KEYS[user]
    entries[stream] = entries[stream] or call('XLEN', stream)
end

local histories = {}
local function is_there(key, wanted)
    local found = call('TYPE', key).ok
    if found ~= 'none' and found ~= wanted then
        error({err = 'WRONGTYPE a key of this prefix is a ' .. found .. ' and not a ' .. wanted})
    end
    return found ~= 'none'
end
local function move()
    local moves = {}
    for user = 2, last, 4 do
        local old = last + user / 2
        if call('EXISTS', KEYS[old], KEYS[old + 1]) > 0 then
            moves[user] = {is_there(KEYS[old], 'list'), is_there(KEYS[old + 1], 'zset'),
                is_there(KEYS[user + 1], 'list'), is_there(KEYS[user + 2], 'zset')}
        end
    end
    for user, there in pairs(moves) do
        local old = last + user / 2
        if there[1] and not there[3] then
            call('RENAME', KEYS[old], KEYS[user + 1])
        elseif there[1] then
            for _, entry in ipairs(call('LRANGE', KEYS[old], 0, -1)) do
                histories[user] = call('RPUSH', KEYS[user + 1], entry)
            end
            call('UNLINK', KEYS[old])
        end
        if there[2] and not there[4] then
            call('RENAME', KEYS[old + 1], KEYS[user + 2])
        elseif there[2] then
            local known = call('ZRANGE', KEYS[old + 1], 0, -1, 'WITHSCORES')
            for at = 1, #known, 2 do
                call('ZADD', KEYS[user + 2], 'NX', known[at + 1], known[at])
            end
            call('UNLINK', KEYS[old + 1])
        end
    end
end
local old_length = 0
if has_old then
    old_length = call('XLEN', KEYS[1])
    move()
end

local time = call('TIME')
local seconds, microseconds = tonumber(time[1]), tonumber(time[2])
local now = seconds * 1000000 + microseconds
local milliseconds = string.format('%.0f-', seconds * 1000 + math.floor(microseconds / 1000))
local first = microseconds % 1000 * 1000
local function add(run, stream, id, at)
    return run('XADD', stream, id, 'user_id', ARGV[at + 3], 'item_id', ARGV[at + 4], 'timestamp', ARGV[at + 5],
        'type', ARGV[at + 6], 'event_id', ARGV[at + 1], 'request_id', ARGV[at + 7])
end
local events, at, doing = #ARGV, 8, ''
local ids, has_ids, added, stored = {}, {}, {}, 0
local function store()
    while at < events do
        local user, event_id = tonumber(ARGV[at]), ARGV[at + 1]
        doing = 'zadd'
        if event_id == '' or call('ZADD', KEYS[user + 2], 'NX', now + stored, event_id) == 1 then
            has_ids[user] = has_ids[user] or event_id ~= ''
            doing = 'rpush'
            local length = call('RPUSH', KEYS[user + 1], ARGV[at + 2])
            doing = 'xadd'
            local stream = KEYS[user]
            local id = add(redis.pcall, stream, milliseconds .. first + stored, at)
            if type(id) == 'table' then
                id = add(call, stream, '*', at)
            end
            ids[at], doing = id, 'rpush'
            call('RPUSH', KEYS[user + 3], id)
            histories[user] = length
            added[stream] = (added[stream] or 0) + 1
            stored = stored + 1
        end
        at = at + 8
    end
end
local function take_back(at, steps)
    local user, event_id = tonumber(ARGV[at]), ARGV[at + 1]
    if steps > 3 then
        redis.pcall('LTRIM', KEYS[user + 3], 0, -2)
    end
    if steps > 2 then
        redis.pcall('XDEL', KEYS[user], ids[at])
        if redis.pcall('XLEN', KEYS[user]) == 0 then
            redis.pcall('UNLINK', KEYS[user])
        end
    end
    if steps > 1 then
        redis.pcall('LTRIM', KEYS[user + 1], 0, -2)
    end
    if event_id ~= '' then
        redis.pcall('ZREM', KEYS[user + 2], event_id)
    end
end
local whole, failure = pcall(store)
if not whole then
    if doing ~= 'zadd' then
        take_back(at, ids[at] and 3 or doing == 'xadd' and 2 or 1)
    end
    for before = at - 8, 8, -8 do
        if ids[before] then
            take_back(before, 4)
        end
    end
    failure = type(failure) == 'table' and failure.err or failure
    return redis.error_reply(failure .. " (in the '" .. doing .. "' command)")
end

for user, length in pairs(histories) do
    if length > history_cap then
        call('LTRIM', KEYS[user + 1], -history_cap, -1)
    end
    call('EXPIRE', KEYS[user + 1], ttl)
    if has_ids[user] then
        call('ZREMRANGEBYRANK', KEYS[user + 2], 0, -event_ids_cap - 1)
    end
    call('EXPIRE', KEYS[user + 2], ttl)
end

-- An entry of a stream is dropped together with its id in the list of its user; the oldest entry has the oldest id.
-- Many are dropped at once, as that costs less per entry. After the cap was lowered this takes several calls.
local fullness, streams = 0, 0
for stream, count in pairs(added) do
    local length = entries[stream] + count
    if length > stream_cap then
        local most = math.min(length - stream_cap + at_once - 1, count + 1000)
        for _, entry in ipairs(call('XRANGE', stream, '-', '+', 'COUNT', most)) do
            redis.pcall('LREM', stream .. '_ids:' .. entry[2][2], 1, entry[1])
        end
        call('XTRIM', stream, 'MAXLEN', length - most)
    end
    fullness, streams = fullness + math.min(length, stream_cap), streams + 1
end

-- The old stream shrinks as the new ones grow. Their fill level is estimated from the streams written here.
if old_length > 0 and stored > 0 then
    local over = old_length + tonumber(ARGV[6]) * (fullness / streams - stream_cap)
    if over > 0 then
        local most = math.min(math.ceil(over), stored)
        for _, entry in ipairs(call('XRANGE', KEYS[1], '-', '+', 'COUNT', most)) do
            call('XDEL', KEYS[1], entry[1])
        end
        if old_length <= most then
            call('EXPIRE', KEYS[1], ttl)
        end
    end
end
return stored
""")

# KEYS: of the user, as in `UserKeys` and `OldUserKeys`. ARGV: most entries to delete from the stream. Returns how many
# were deleted; if it was the most, more may be left, but never an entry without its id in the list.
ERASE: Final = Script("""
redis.call('UNLINK', KEYS[2], KEYS[3], KEYS[5], KEYS[6])
local ids = redis.call('LRANGE', KEYS[4], 0, ARGV[1] - 1)
if #ids > 0 then
    redis.call('XDEL', KEYS[1], unpack(ids))
    redis.call('LTRIM', KEYS[4], #ids, -1)
end
return #ids
""")

# One batch of the old stream: deletes the user's entries in it and returns where the next batch starts ('' at the end).
ERASE_FROM_OLD_STREAM: Final = Script("""
local entries = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[3])
for _, entry in ipairs(entries) do
    if entry[2][2] == ARGV[2] then
        redis.call('XDEL', KEYS[1], entry[1])
    end
end
if #entries < tonumber(ARGV[3]) then
    return ''
end
return entries[#entries][1]
""")
