"""The Lua script that stores events in Redis, which runs it atomically."""

from typing import Final

from service.stores.redis_pipeline import Script

TO_BE_MOVED: Final = -1
"""First result of `APPEND`, which then has stored nothing, if the old layout exists and its keys were not passed."""

OF_MERGED_SESSION: Final = -2
"""First result of `APPEND`, which then has stored nothing, if an event is of an anonymous session that was merged."""

# An entry is an item, a timestamp and a type, separated by U+001F.
TIMES: Final = """
local function time_of(entry)
    return tonumber(string.match(entry, '^[^\\31]*\\31([^\\31]*)')) or 0
end
local function rewrite(key, entries, changed)
    if changed == 1 then
        redis.call('UNLINK', key)
    else
        redis.call('LTRIM', key, 0, changed - 2)
    end
    for at = changed, #entries, 1000 do
        redis.call('RPUSH', key, unpack(entries, at, math.min(at + 999, #entries)))
    end
end
"""
"""Functions of the scripts that order histories by time."""

# An entry of a stream is dropped together with its id in the list of its user; the oldest entry has the oldest id. Many
# are dropped at once, as that costs less per entry. After the cap was lowered this takes several calls. Arguments: the
# stream, its length, entries that the call added, cap of the stream, how many entries it drops at once. Returns how
# many events were not exported; the record of a merge has no item and is no event.
CUT: Final = """
local function cut(stream, length, added, stream_cap, at_once)
    local most = math.min(length - stream_cap + at_once - 1, added + 1000)
    local export = string.sub(stream, 1, -7) .. 'export'
    local exported, lost = redis.call('HGET', export, 'exported'), 0
    local time, sequence = string.match(exported or '', '(%d+)-(%d+)')
    for _, entry in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', most)) do
        redis.pcall('LREM', stream .. '_ids:' .. entry[2][2], 1, entry[1])
        if time and entry[2][3] == 'item_id' then
            local id_time, id_sequence = string.match(entry[1], '(%d+)-(%d+)')
            if id_time == time and tonumber(id_sequence) > tonumber(sequence)
                or tonumber(id_time) > tonumber(time) then
                lost = lost + 1
            end
        end
    end
    redis.call('XTRIM', stream, 'MAXLEN', length - most)
    if lost > 0 then
        redis.call('HINCRBY', export, 'lost', lost)
    end
    return lost
end
"""
"""A function of the scripts that add entries to a stream."""

# KEYS: the old stream, then six keys of each user, as in `UserKeys`; then, if the caller knows that the old layout
# exists, two keys of each user, as in `OldUserKeys`. ARGV: caps of history and event ids, seconds to live, cap of a
# bucket's stream, how many entries it drops at once, number of buckets, seconds that an event may be late, cap and
# seconds to live of impressions, seconds to live of a session's data, whether there is an event of a session (1 or 0),
# number of users, then twelve values of each event, the first of them the position in KEYS of the first key of its
# user, the ninth how far from that its list is (1 history, 4 impressions, 0 none). Returns how many events were stored,
# how many were cut at the cap before they were exported (without an exporter none counts as such), then the number,
# counted from 0, of each event that was not stored again as its id is known.
#
# Events of merged sessions renew the records that say whose they are, and nothing is stored. No other event may cause a
# write there: Redis refuses a script for lack of memory only until its first write.
#
# Events come in the order of their times, so those that are too late for their place are the first ones of their user.
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
APPEND: Final = Script(
    TIMES
    + CUT
    + """
local call = redis.call
local history_cap, event_ids_cap, ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local stream_cap, at_once = tonumber(ARGV[4]), tonumber(ARGV[5])
local last = 6 * tonumber(ARGV[12]) + 1
local has_old = call('EXISTS', KEYS[1]) == 1
if has_old and #KEYS == last then
    return {-1, 0}
end
local ttls, merged = {}, false
if ARGV[11] == '1' then
    for at = 13, #ARGV, 12 do
        local user = tonumber(ARGV[at])
        if string.byte(ARGV[at + 3]) == 31 and not ttls[user] then
            ttls[user] = ARGV[10]
            if call('EXISTS', KEYS[user + 5]) == 1 then
                call('EXPIRE', KEYS[user + 5], ARGV[10])
                merged = true
            end
        end
    end
end
if merged then
    return {-2, 0}
end
local entries = {}
for user = 2, last, 6 do
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
    for user = 2, last, 6 do
        local old = last + (user + 1) / 3
        if call('EXISTS', KEYS[old], KEYS[old + 1]) > 0 then
            moves[user] = {is_there(KEYS[old], 'list'), is_there(KEYS[old + 1], 'zset'),
                is_there(KEYS[user + 1], 'list'), is_there(KEYS[user + 2], 'zset')}
        end
    end
    for user, there in pairs(moves) do
        local old = last + (user + 1) / 3
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
local optional = {'session_id', 'value', 'arm'}
local function add(run, stream, id, at)
    if ARGV[at + 9] == '' and ARGV[at + 10] == '' and ARGV[at + 11] == '' then -- as most events: without a table
        return run('XADD', stream, id, 'user_id', ARGV[at + 3], 'item_id', ARGV[at + 4], 'timestamp', ARGV[at + 5],
            'type', ARGV[at + 6], 'event_id', ARGV[at + 1], 'request_id', ARGV[at + 7])
    end
    local fields = {'user_id', ARGV[at + 3], 'item_id', ARGV[at + 4], 'timestamp', ARGV[at + 5],
        'type', ARGV[at + 6], 'event_id', ARGV[at + 1], 'request_id', ARGV[at + 7]}
    for place, name in ipairs(optional) do
        local given = ARGV[at + 8 + place]
        if given ~= '' then
            fields[#fields + 1], fields[#fields + 2] = name, given
        end
    end
    return run('XADD', stream, id, unpack(fields))
end
local events, at, doing = #ARGV, 13, ''
local ids, has_ids, added, stored, known = {}, {}, {}, 0, {}
local impressions, newest, disordered = {}, {}, {}
local present = seconds + microseconds / 1000000
local oldest = present - tonumber(ARGV[7])
local function is_passed(entry, late)
    return entry > late and entry <= present
end
local function push(user, at)
    local time = tonumber(ARGV[at + 5])
    if not newest[user] then
        local tail = call('LRANGE', KEYS[user + 1], -1, -1)[1]
        newest[user] = tail and time_of(tail) or time
    end
    if disordered[user] or (time >= oldest and is_passed(newest[user], time)) then
        disordered[user] = (disordered[user] or 0) + 1
    end
    newest[user] = time
    histories[user] = call('RPUSH', KEYS[user + 1], ARGV[at + 2])
end
local function store()
    while at < events do
        local user, event_id = tonumber(ARGV[at]), ARGV[at + 1]
        doing = 'zadd'
        if event_id == '' or call('ZADD', KEYS[user + 2], 'NX', now + stored, event_id) == 1 then
            has_ids[user] = has_ids[user] or event_id ~= ''
            doing = 'rpush'
            if ARGV[at + 8] == '1' then
                push(user, at)
            elseif ARGV[at + 8] == '4' then
                impressions[user] = call('RPUSH', KEYS[user + 4], ARGV[at + 2])
            end
            doing = 'xadd'
            local stream = KEYS[user]
            local id = add(redis.pcall, stream, milliseconds .. first + stored, at)
            if type(id) == 'table' then
                id = add(call, stream, '*', at)
            end
            ids[at], doing = id, 'rpush'
            call('RPUSH', KEYS[user + 3], id)
            added[stream] = (added[stream] or 0) + 1
            stored = stored + 1
        else
            known[#known + 1] = (at - 13) / 12
        end
        at = at + 12
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
    if steps > 1 and ARGV[at + 8] ~= '0' then
        redis.pcall('LTRIM', KEYS[user + ARGV[at + 8]], 0, -2)
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
    for before = at - 12, 13, -12 do
        if ids[before] then
            take_back(before, 4)
        end
    end
    failure = type(failure) == 'table' and failure.err or failure
    return redis.error_reply(failure .. " (in the '" .. doing .. "' command)")
end

-- Events that arrived late, but not too late, are merged into the entries before them from the end.
for user, count in pairs(disordered) do
    local entries = call('LRANGE', KEYS[user + 1], 0, -1)
    local late = {unpack(entries, #entries - count + 1)}
    local place, before, left = #entries, #entries - count, count
    while left > 0 do
        if before > 0 and is_passed(time_of(entries[before]), time_of(late[left])) then
            entries[place], before = entries[before], before - 1
        else
            entries[place], left = late[left], left - 1
        end
        place = place - 1
    end
    rewrite(KEYS[user + 1], entries, place + 1)
end

for user, length in pairs(histories) do
    if length > history_cap then
        call('LTRIM', KEYS[user + 1], -history_cap, -1)
    end
    call('EXPIRE', KEYS[user + 1], ttls[user] or ttl)
    call('EXPIRE', KEYS[user + 2], ttls[user] or ttl)
end
for user, length in pairs(impressions) do
    if length > tonumber(ARGV[8]) then
        call('LTRIM', KEYS[user + 4], -ARGV[8], -1)
    end
    call('EXPIRE', KEYS[user + 4], ARGV[9])
end
for user, sent in pairs(has_ids) do
    if sent then
        call('ZREMRANGEBYRANK', KEYS[user + 2], 0, -event_ids_cap - 1)
        if not histories[user] then
            call('EXPIRE', KEYS[user + 2], ttls[user] or ttl)
        end
    end
end

local fullness, streams, lost = 0, 0, 0
for stream, count in pairs(added) do
    local length = entries[stream] + count
    if length > stream_cap then
        lost = lost + cut(stream, length, count, stream_cap, at_once)
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
return {stored, lost, unpack(known)}
"""
)
