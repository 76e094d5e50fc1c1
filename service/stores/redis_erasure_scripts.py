"""The Lua scripts that erase a user in Redis or cut a stream; Redis runs each of them atomically."""

from typing import Final

from service.stores.redis_pipeline import ALSO_WHEN_FULL, Script

NEEDS_KEY: Final = -1
"""Result of `ERASE`, which then has deleted nothing, if events are exported and the key of erasures is another one."""

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

# KEYS: of a user or session, as in `UserKeys` and `OldUserKeys`. ARGV: most entries to delete from the stream; key of
# the export's erasures, keyed hash of the owner, both empty if events are not exported; most erasures that may wait for
# the exporter. Returns how many entries were deleted; if it was the most, more may be left, but never an entry without
# its id in the list. The record of merges stays: the sessions that it names are to be erased too.
#
# The erasure covers every exported event, every entry of the user, and what arrived until now.
ERASE: Final = Script(
    ALSO_WHEN_FULL
    + """
local bucket = string.sub(KEYS[1], 1, -7)
local known = redis.call('HMGET', bucket .. 'export', 'key', 'exported', 'erasing')
if known[1] then
    if known[1] ~= ARGV[2] then
        return -1
    end
    local time = redis.call('TIME')
    local seconds, microseconds = tonumber(time[1]), tonumber(time[2])
    local milliseconds = seconds * 1000 + math.floor(microseconds / 1000)
    local until_time, until_sequence = milliseconds, microseconds % 1000 * 1000 + 999
    for _, id in ipairs({known[2], redis.call('LRANGE', KEYS[4], -1, -1)[1]}) do
        local of_time, of_sequence = string.match(id, '(%d+)-(%d+)')
        of_time, of_sequence = tonumber(of_time), tonumber(of_sequence)
        if of_time > until_time or (of_time == until_time and of_sequence > until_sequence) then
            until_time, until_sequence = of_time, of_sequence
        end
    end
    local erasures = bucket .. 'erasures'
    if redis.call('HLEN', erasures) >= tonumber(ARGV[4]) and not redis.call('HGET', erasures, ARGV[3]) then
        return redis.error_reply('ERASURESFULL too many erasures wait for the exporter')
    end
    redis.call('HSET', erasures, ARGV[3], string.format('%.0f-%.0f', until_time, until_sequence))
    if not known[3] then
        redis.call('HSET', bucket .. 'export', 'erasing', string.format('%.0f', milliseconds))
    end
end
redis.call('UNLINK', KEYS[2], KEYS[3], KEYS[5], KEYS[7], KEYS[8])
local ids = redis.call('LRANGE', KEYS[4], 0, ARGV[1] - 1)
if #ids > 0 then
    redis.call('XDEL', KEYS[1], unpack(ids))
    redis.call('LTRIM', KEYS[4], #ids, -1)
end
return #ids
"""
)

# KEYS: the user that a session was merged into. ARGV: user. Frees the session, unless it became another user's since.
FREE_SESSION: Final = Script("""
if redis.call('HGET', KEYS[1], 'user') ~= ARGV[1] then
    return 0
end
return redis.call('UNLINK', KEYS[1])
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
