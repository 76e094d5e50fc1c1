"""The Lua script that merges a session into a user in Redis, which runs it atomically."""

from typing import Final

from service.stores.redis_erasure_scripts import CUT
from service.stores.redis_history_scripts import TIMES
from service.stores.redis_pipeline import Script

JOIN: Final = (
    TIMES
    + """
local call = redis.call
-- Writes a session's history, event ids and impressions to those of its user, whose entries are already read. Both
-- histories are merged by time. Caps: of history, event ids and impressions; ttls: of the first two, of impressions.
local function join(history, event_ids, impressions, entries, moved, known_ids, shown, caps, ttls)
    local both, at = {}, 1
    for _, entry in ipairs(entries) do
        while moved[at] and time_of(moved[at]) < time_of(entry) do
            both[#both + 1], at = moved[at], at + 1
        end
        both[#both + 1] = entry
    end
    while moved[at] do
        both[#both + 1], at = moved[at], at + 1
    end
    if #both > 0 then
        rewrite(history, both, 1)
        call('LTRIM', history, -caps[1], -1)
        call('EXPIRE', history, ttls[1])
    end
    local has_ids = false
    for _, known in ipairs(known_ids) do
        for at = 1, #known, 2 do
            call('ZADD', event_ids, 'NX', known[at + 1], known[at])
            has_ids = true
        end
    end
    if has_ids then
        call('ZREMRANGEBYRANK', event_ids, 0, -caps[2] - 1)
        call('EXPIRE', event_ids, ttls[1])
    end
    if #shown > 0 then
        rewrite(impressions, shown, 1)
        call('LTRIM', impressions, -caps[3], -1)
        call('EXPIRE', impressions, ttls[2])
    end
end
local function joined(one, other)
    local entries = call('LRANGE', one, 0, -1)
    for _, entry in ipairs(other) do
        entries[#entries + 1] = entry
    end
    return entries
end
"""
)
"""Functions of the scripts that merge a session into a user."""

# Arguments: stream of the session's bucket, ids of the session's entries, session, user, seconds and microseconds as
# TIME gives them. A stream whose last id is later than the clock takes its own next id.
#
# The merge is an entry of the session's stream, so that it is exported and erased as the session's events are. Before
# a script writes, it must read both keys, so that a key of another kind fails without a change. At its end it cuts the
# stream, which then may have one entry too many.
RECORD_MERGE: Final = (
    CUT
    + """
local function record_merge(stream, stream_ids, session, user, time)
    local microseconds = tonumber(time[2])
    local record = {'user_id', '\\31' .. session, 'type', 'merge', 'session_id', session, 'merged_into', user}
    local id = string.format('%.0f-%.0f', tonumber(time[1]) * 1000 + math.floor(microseconds / 1000),
        microseconds % 1000 * 1000)
    id = redis.pcall('XADD', stream, id, unpack(record))
    if type(id) == 'table' then
        id = redis.call('XADD', stream, '*', unpack(record))
    end
    redis.call('RPUSH', stream_ids, id)
end
local function cut_if_full(stream, stream_cap, at_once)
    local length = redis.call('XLEN', stream)
    if length > stream_cap then
        return cut(stream, length, 1, stream_cap, at_once)
    end
    return 0
end
"""
)

# KEYS: of session and user, as in `UserKeys`, then of the user, as in `OldUserKeys`. ARGV: caps of history,
# event ids, impressions and merged sessions, seconds to live of these but of the sessions, of the impressions and of a
# session's data, cap of a bucket's stream, how many entries it drops at once, session, user. Returns the number of
# entries moved, the user if the session is merged already, or a session that must be erased before as the user has too
# many; then how many events were cut at the cap before they were exported.
#
# All keys are read before the first is written, so a key of another kind fails without a change.
MERGE: Final = Script(
    JOIN
    + RECORD_MERGE
    + """
local merged_into = call('HGET', KEYS[6], 'user')
if merged_into then
    if merged_into == ARGV[11] then
        call('EXPIRE', KEYS[6], ARGV[7])
    end
    return {'user', merged_into, 0}
end
local sessions = call('ZCARD', KEYS[12])
if sessions >= tonumber(ARGV[4]) then
    return {'session', call('ZRANGE', KEYS[12], 0, 0)[1], 0}
end
local moved, ids = call('LRANGE', KEYS[2], 0, -1), call('ZRANGE', KEYS[3], 0, -1, 'WITHSCORES')
local shown = joined(KEYS[11], call('LRANGE', KEYS[5], 0, -1))
local entries = joined(KEYS[13], call('LRANGE', KEYS[8], 0, -1))
local old_ids = call('ZRANGE', KEYS[14], 0, -1, 'WITHSCORES')
call('ZCARD', KEYS[9])
call('XLEN', KEYS[1])
call('LRANGE', KEYS[4], 0, 0)

local time = call('TIME')
record_merge(KEYS[1], KEYS[4], ARGV[10], ARGV[11], time)
join(KEYS[8], KEYS[9], KEYS[11], entries, moved, {old_ids, ids}, shown,
    {ARGV[1], ARGV[2], ARGV[3]}, {ARGV[5], ARGV[6]})
call('ZADD', KEYS[12], time[1], ARGV[10])
call('HSET', KEYS[6], 'user', ARGV[11])
call('EXPIRE', KEYS[6], ARGV[7])
call('UNLINK', KEYS[2], KEYS[3], KEYS[5], KEYS[13], KEYS[14])
return {'moved', #moved, cut_if_full(KEYS[1], tonumber(ARGV[8]), tonumber(ARGV[9]))}
"""
)
