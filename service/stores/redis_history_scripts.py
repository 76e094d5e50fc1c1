"""The Lua scripts of `service.stores.redis_histories`; Redis runs each of them alone and to its end."""

from typing import Final

from service.stores.redis_pipeline import Script

# KEYS: the old stream, then six of each user, as in `UserKeys`. ARGV: caps of history and event ids, seconds to live,
# cap of a bucket's stream, number of buckets, then eight of each event, the first of them the number of its user.
#
# All or none: Redis refuses the first write of a script or none. What else could end it in the middle, a key of another
# kind or a command that the user may not run, is looked at before the first write.
#
# Without the old stream there is nothing else of the old layout either: it was written with every event and stays for
# as long as a history may.
#
# Ids of stream entries come from the clock in microseconds and the place in the call, so that the streams of all
# buckets can be merged in the order of arrival. Where the clock has gone back, an id is the next one of its stream.
APPEND: Final = Script("""
local WANTED = {'stream', 'list', 'zset', 'list', 'list', 'zset'}
local is_there = {}
local function look_at(at, wanted)
    local key = KEYS[at]
    if is_there[key] == nil then
        local found = redis.call('TYPE', key).ok
        if found ~= 'none' and found ~= wanted then
            return 'WRONGTYPE a key of this prefix is a ' .. found .. ' and not a ' .. wanted
        end
        is_there[key] = found ~= 'none'
    end
end
local wrong = look_at(1, 'stream')
local has_old, old_length = is_there[KEYS[1]], redis.call('XLEN', KEYS[1])
for user = 2, #KEYS, 6 do
    for part = 1, has_old and 6 or 4 do
        wrong = wrong or look_at(user + part - 1, WANTED[part])
    end
end
if wrong then
    return redis.error_reply(wrong)
end
local history_cap, event_ids_cap, ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local stream_cap, buckets = tonumber(ARGV[4]), tonumber(ARGV[5])
local touched, added, stored = {}, {}, 0

for user = 2, has_old and #KEYS or 0, 6 do
    local history, event_ids = KEYS[user + 1], KEYS[user + 2]
    local old_history, old_event_ids = KEYS[user + 4], KEYS[user + 5]
    if is_there[old_history] and not is_there[history] then
        redis.call('RENAME', old_history, history)
    elseif is_there[old_history] then
        for _, entry in ipairs(redis.call('LRANGE', old_history, 0, -1)) do
            redis.call('RPUSH', history, entry)
        end
        redis.call('UNLINK', old_history)
        touched[user] = true
    end
    if is_there[old_event_ids] and not is_there[event_ids] then
        redis.call('RENAME', old_event_ids, event_ids)
    elseif is_there[old_event_ids] then
        local known = redis.call('ZRANGE', old_event_ids, 0, -1, 'WITHSCORES')
        for at = 1, #known, 2 do
            redis.call('ZADD', event_ids, 'NX', known[at + 1], known[at])
        end
        redis.call('UNLINK', old_event_ids)
    end
end

local time = redis.call('TIME')
local seconds, microseconds = tonumber(time[1]), tonumber(time[2])
local now = seconds * 1000000 + microseconds
local milliseconds = string.format('%.0f-', seconds * 1000 + math.floor(microseconds / 1000))
local first = microseconds % 1000 * 1000
local function add(run, stream, id, at)
    return run('XADD', stream, id, 'user_id', ARGV[at + 3], 'item_id', ARGV[at + 4], 'timestamp', ARGV[at + 5],
        'type', ARGV[at + 6], 'event_id', ARGV[at + 1], 'request_id', ARGV[at + 7])
end
for at = 6, #ARGV, 8 do
    local user, event_id = 6 * tonumber(ARGV[at]) - 4, ARGV[at + 1]
    if event_id == '' or redis.call('ZADD', KEYS[user + 2], 'NX', now + stored, event_id) == 1 then
        redis.call('RPUSH', KEYS[user + 1], ARGV[at + 2])
        local stream = KEYS[user]
        local id = add(redis.pcall, stream, milliseconds .. first + stored, at)
        if type(id) == 'table' then
            id = add(redis.call, stream, '*', at)
        end
        redis.call('RPUSH', KEYS[user + 3], id)
        touched[user] = true
        added[stream] = (added[stream] or 0) + 1
        stored = stored + 1
    end
end

for user, _ in pairs(touched) do
    redis.call('LTRIM', KEYS[user + 1], -history_cap, -1)
    redis.call('EXPIRE', KEYS[user + 1], ttl)
    redis.call('ZREMRANGEBYRANK', KEYS[user + 2], 0, -event_ids_cap - 1)
    redis.call('EXPIRE', KEYS[user + 2], ttl)
end

-- With an entry of a stream its id among those of its user goes too; the oldest entry has the oldest id. Where the cap
-- was lowered this takes several calls.
local fullness, streams = 0, 0
for stream, count in pairs(added) do
    local length = redis.call('XLEN', stream)
    if length > stream_cap then
        local most = math.min(length - stream_cap, count + 1000)
        local dropped = {}
        for at, entry in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', most)) do
            redis.pcall('LREM', stream .. '_ids:' .. entry[2][2], 1, entry[1])
            dropped[at] = entry[1]
        end
        redis.call('XDEL', stream, unpack(dropped))
    end
    fullness, streams = fullness + math.min(length, stream_cap), streams + 1
end

-- The old stream gives way to the new ones. How full these are is judged by those touched here.
if old_length > 0 and stored > 0 then
    local over = old_length + buckets * (fullness / streams - stream_cap)
    if over > 0 then
        local most = math.min(math.ceil(over), stored)
        for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', most)) do
            redis.call('XDEL', KEYS[1], entry[1])
        end
        if old_length <= most then
            redis.call('EXPIRE', KEYS[1], ttl)
        end
    end
end
return stored
""")

# KEYS: of the user, as in `UserKeys`. ARGV: most entries deleted from the stream. Gives how many were; where it was the
# most, more may be left, but never an entry without its id in the list.
ERASE: Final = Script("""
redis.call('UNLINK', KEYS[2], KEYS[3], KEYS[5], KEYS[6])
local ids = redis.call('LRANGE', KEYS[4], 0, ARGV[1] - 1)
if #ids > 0 then
    redis.call('XDEL', KEYS[1], unpack(ids))
    redis.call('LTRIM', KEYS[4], #ids, -1)
end
return #ids
""")

# One batch of the old stream: deletes the user's entries among the next ones, gives where to go on ('' at the end).
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
