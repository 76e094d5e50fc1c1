"""The Lua script that stores events in Redis, which runs it atomically."""

from typing import Final

from service.stores.redis_erasure_scripts import CUT
from service.stores.redis_pipeline import Script

TO_BE_MOVED: Final = -1
"""First result of `APPEND`, which then has stored nothing, if the old layout exists and its keys were not passed."""

OF_MERGED_SESSION: Final = -2
"""First result of `APPEND`, which then has stored nothing, if an event is of an anonymous session that was merged."""

LATE: Final = -3
"""Result of `APPEND_ONE`, which then has stored nothing, if the event has its place before entries of its history."""

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

# KEYS: the old stream; four keys of each user, the first ones of `UserKeys`; further keys of some users, which sessions
# and events name by their position; then, if the caller knows that the old layout exists, two keys of each user, as in
# `OldUserKeys`. ARGV: cap of a history, rank of the newest event id that is over its cap, seconds to live, cap of a
# bucket's stream, how many entries it drops at once, number of buckets, seconds that an event may be late, cap and
# seconds to live of impressions, seconds to live of a session's data, number of users, number of keys without those of
# the old layout, and sessions and events.
#
# The last one is JSON, as an argument of its own for each value takes both sides several times as long: a list of two
# flat lists. A session has two values, the positions in KEYS of its first key and of the key of its merges. An event
# has nine: the position of the first key of its user; which list gets it (true: the history, 'last': its end whatever
# the time, false: none, else the position of its key); its id, user, item, timestamp, type and request id, all text;
# and names and values of further fields (false: none).
#
# Returns how many events were stored, how many were cut at the cap before they were exported (without an exporter none
# counts as such), then the number, counted from 0, of each event that was not stored again as its id is known.
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
#
# Numbers for commands are text: Redis prints a number of Lua in 17 digits, which costs as much as a short command.
APPEND: Final = Script(
    TIMES
    + CUT
    + """
local call = redis.call
local history_cap, ttl = tonumber(ARGV[1]), ARGV[3]
local stream_cap, at_once = tonumber(ARGV[4]), tonumber(ARGV[5])
local last, of_layout = 4 * tonumber(ARGV[11]) + 1, tonumber(ARGV[12])
local has_old = call('EXISTS', KEYS[1]) == 1
if has_old and #KEYS == of_layout then
    return {-1, 0}
end
local sessions, values = unpack(cjson.decode(ARGV[13]))
local ttls, merged = {}, false
for at = 1, #sessions, 2 do
    local merges = KEYS[sessions[at + 1]]
    ttls[sessions[at]] = ARGV[10]
    if call('EXISTS', merges) == 1 then
        call('EXPIRE', merges, ARGV[10])
        merged = true
    end
end
if merged then
    return {-2, 0}
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
        local old = of_layout + user / 2
        if call('EXISTS', KEYS[old], KEYS[old + 1]) > 0 then
            moves[user] = {is_there(KEYS[old], 'list'), is_there(KEYS[old + 1], 'zset'),
                is_there(KEYS[user + 1], 'list'), is_there(KEYS[user + 2], 'zset')}
        end
    end
    for user, there in pairs(moves) do
        local old = of_layout + user / 2
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
local now_text = string.format('%.0f', now)
local id_format = string.format('%.0f-%%d', seconds * 1000 + math.floor(microseconds / 1000))
local first = microseconds % 1000 * 1000
local no_fields = {}
local function add(run, stream, id, at)
    return run('XADD', stream, id, 'user_id', values[at + 3], 'item_id', values[at + 4],
        'timestamp', values[at + 5], 'type', values[at + 6], 'event_id', values[at + 2],
        'request_id', values[at + 7], unpack(values[at + 8] or no_fields))
end
local events, at, doing = #values, 1, ''
local ids, new_ids, added, stored, known = {}, {}, {}, 0, {}
local impressions, newest, disordered = {}, {}, {}
local present = seconds + microseconds / 1000000
local oldest = present - tonumber(ARGV[7])
local function is_passed(entry, late)
    return entry > late and entry <= present
end
local timestamp, time
local function push(user, entry, by_time)
    if by_time and not newest[user] then
        local tail = call('LRANGE', KEYS[user + 1], '-1', '-1')[1]
        newest[user] = tail and time_of(tail) or time
    end
    if disordered[user] or (by_time and time >= oldest and is_passed(newest[user], time)) then
        disordered[user] = (disordered[user] or 0) + 1
    end
    newest[user] = time
    histories[user] = call('RPUSH', KEYS[user + 1], entry)
end
local function store()
    while at < events do
        local user, list, event_id = values[at], values[at + 1], values[at + 2]
        local before = new_ids[user] or 0
        local score = before == 0 and now_text or string.format('%.0f', now + before)
        doing = 'zadd'
        if event_id == '' or call('ZADD', KEYS[user + 2], 'NX', score, event_id) == 1 then
            if event_id ~= '' then
                new_ids[user] = before + 1
            end
            doing = 'rpush'
            if list then
                if timestamp ~= values[at + 5] then
                    timestamp, time = values[at + 5], tonumber(values[at + 5])
                end
                local entry = values[at + 4] .. '\\31' .. timestamp .. '\\31' .. values[at + 6]
                if list == true or list == 'last' then
                    push(user, entry, list == true)
                else
                    impressions[list] = call('RPUSH', KEYS[list], entry)
                end
            end
            doing = 'xadd'
            local stream = KEYS[user]
            local id = add(redis.pcall, stream, string.format(id_format, first + stored), at)
            if type(id) == 'table' then
                id = add(call, stream, '*', at)
            end
            ids[at], doing = id, 'rpush'
            call('RPUSH', KEYS[user + 3], id)
            added[stream] = (added[stream] or 0) + 1
            stored = stored + 1
        else
            known[#known + 1] = (at - 1) / 9
        end
        at = at + 9
    end
end
local function take_back(at, steps)
    local user, list, event_id = values[at], values[at + 1], values[at + 2]
    if steps > 3 then
        redis.pcall('LTRIM', KEYS[user + 3], 0, -2)
    end
    if steps > 2 then
        redis.pcall('XDEL', KEYS[user], ids[at])
        if redis.pcall('XLEN', KEYS[user]) == 0 then
            redis.pcall('UNLINK', KEYS[user])
        end
    end
    if steps > 1 and list then
        redis.pcall('LTRIM', KEYS[(list == true or list == 'last') and user + 1 or list], 0, -2)
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
    for before = at - 9, 1, -9 do
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
for list, length in pairs(impressions) do
    if length > tonumber(ARGV[8]) then
        call('LTRIM', KEYS[list], -ARGV[8], -1)
    end
    call('EXPIRE', KEYS[list], ARGV[9])
end
for user in pairs(new_ids) do
    call('ZREMRANGEBYRANK', KEYS[user + 2], '0', ARGV[2])
    if not histories[user] then
        call('EXPIRE', KEYS[user + 2], ttls[user] or ttl)
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

# As `APPEND` for one event, with the same effects, in two thirds of the instructions: no JSON, no loops, no tables, and
# the caps are constants before it. KEYS: the old stream; stream; the list that gets the event (with `stream`: none
# does); event ids; stream ids; for a session the key of its merges. ARGV: where the event is stored, as in `Event`; its
# id, user, item, timestamp, type and request id; names and values of further fields. Returns 0 if the id is known, else
# 1 and how many events were cut before they were exported; or a negative number of above, and nothing was stored.
APPEND_ONE: Final = (
    """
local call = redis.call
local stream, list, event_ids, event_id, timestamp = KEYS[2], KEYS[3], KEYS[4], ARGV[2], ARGV[5]
local is_history = ARGV[1] == 'history' or ARGV[1] == 'last'
if call('EXISTS', KEYS[1]) == 1 then
    return -1
end
if KEYS[6] then
    ttl = session_ttl
    if call('EXISTS', KEYS[6]) == 1 then
        call('EXPIRE', KEYS[6], ttl)
        return -2
    end
end
local length = call('XLEN', stream) + 1
local time = call('TIME')
local seconds, microseconds = time[1], tonumber(time[2])
local tails = ARGV[1] == 'history' and redis.pcall('LRANGE', list, '-1', '-1') or {}
if tails[1] then
    local newest = tonumber(string.match(tails[1], '^[^\\31]*\\31([^\\31]*)')) or 0
    local at, present = tonumber(timestamp), seconds + microseconds / 1000000
    if newest > at and at >= present - late_s and newest <= present then
        return -3
    end
end

local doing, pushed, id = 'zadd', 0, false
local function store()
    local score = seconds .. string.format('%06d', microseconds)
    if event_id ~= '' and call('ZADD', event_ids, 'NX', score, event_id) == 0 then
        return false
    end
    doing = 'rpush'
    if tails.err then error(tails) end
    if ARGV[1] ~= 'stream' then
        pushed = call('RPUSH', list, ARGV[4] .. '\\31' .. timestamp .. '\\31' .. ARGV[6])
    end
    doing = 'xadd'
    local wanted = string.format('%s%03d-%d', seconds, microseconds / 1000, microseconds % 1000 * 1000)
    local added = redis.pcall('XADD', stream, wanted, 'user_id', ARGV[3], 'item_id', ARGV[4], 'timestamp', timestamp,
        'type', ARGV[6], 'event_id', event_id, 'request_id', ARGV[7], unpack(ARGV, 8))
    if type(added) == 'table' then
        added = call('XADD', stream, '*', 'user_id', ARGV[3], 'item_id', ARGV[4], 'timestamp', timestamp,
            'type', ARGV[6], 'event_id', event_id, 'request_id', ARGV[7], unpack(ARGV, 8))
    end
    id, doing = added, 'rpush'
    call('RPUSH', KEYS[5], id)
    return true
end
local whole, result = pcall(store)
if not whole then
    if id then
        redis.pcall('XDEL', stream, id)
        if redis.pcall('XLEN', stream) == 0 then
            redis.pcall('UNLINK', stream)
        end
    end
    if pushed > 0 then
        redis.pcall('LTRIM', list, '0', '-2')
    end
    if event_id ~= '' and doing ~= 'zadd' then
        redis.pcall('ZREM', event_ids, event_id)
    end
    result = type(result) == 'table' and result.err or result
    return redis.error_reply(result .. " (in the '" .. doing .. "' command)")
elseif not result then
    return 0
end

if pushed > 0 then
    if pushed > (is_history and history_cap or impressions_cap) then
        call('LTRIM', list, is_history and oldest_kept or oldest_impression, '-1')
    end
    call('EXPIRE', list, is_history and ttl or impressions_ttl)
end
if is_history or event_id ~= '' then
    call('EXPIRE', event_ids, ttl)
end
if event_id ~= '' then
    call('ZREMRANGEBYRANK', event_ids, '0', surplus_rank)
end
if length > stream_cap then"""
    + CUT
    + """
    return 1 + cut(stream, length, 1, stream_cap, at_once)
end
return 1
"""
)
