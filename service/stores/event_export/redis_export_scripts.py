"""The Lua scripts of `service.stores.event_export.redis_event_export`; Redis runs each of them atomically."""

from typing import Final

from service.stores.redis_pipeline import ALSO_WHEN_FULL, Script

# KEYS: export, stream. ARGV: id of the directory, key of its erasures, the last id that the directory holds. Returns
# the last id that was exported; `other` if another directory is exported to.
#
# A stream that lost its data must not give out ids again that were exported: an entry with the last one is added and
# deleted, which fails where the stream has gone further. A failover may have lost the end of the stream and no more.
ATTACH: Final = Script(
    ALSO_WHEN_FULL
    + """
local directory = redis.call('HGET', KEYS[1], 'directory')
if directory and directory ~= ARGV[1] then
    return 'other'
end
if not directory then
    redis.call('HSET', KEYS[1], 'directory', ARGV[1], 'key', ARGV[2], 'exported', ARGV[3])
    redis.call('HDEL', KEYS[1], 'detached')
end
if ARGV[3] ~= '0-0' and type(redis.pcall('XADD', KEYS[2], ARGV[3], 'user_id', '')) == 'string' then
    redis.call('XDEL', KEYS[2], ARGV[3])
end
return redis.call('HGET', KEYS[1], 'exported')
"""
)

# KEYS: export. ARGV: id of the directory, the last exported id as this exporter knows it, the new one. Returns nothing;
# if the key is another one than this exporter knows, its directory and last exported id, empty where it has none.
MARK: Final = Script(
    ALSO_WHEN_FULL
    + """
local known = redis.call('HMGET', KEYS[1], 'directory', 'exported')
if known[1] ~= ARGV[1] or known[2] ~= ARGV[2] then
    return {known[1] or '', known[2] or ''}
end
redis.call('HSET', KEYS[1], 'exported', ARGV[3])
return {}
"""
)

# KEYS: export of the first bucket.
DETACH: Final = Script(
    ALSO_WHEN_FULL
    + """
return redis.call('HSET', KEYS[1], 'detached', '1')
"""
)

# KEYS: export, stream. ARGV: most entries. Removes exported entries, each with its id in the list of its user; returns
# how many.
TRIM: Final = Script("""
local exported = redis.call('HGET', KEYS[1], 'exported')
if not exported then
    return 0
end
local entries = redis.call('XRANGE', KEYS[2], '-', exported, 'COUNT', ARGV[1])
for _, entry in ipairs(entries) do
    redis.call('LREM', KEYS[2] .. '_ids:' .. entry[2][2], 1, entry[1])
end
if #entries > 0 then
    redis.call('XTRIM', KEYS[2], 'MAXLEN', redis.call('XLEN', KEYS[2]) - #entries)
end
return #entries
""")

# KEYS: export, stream. ARGV: the last exported id, as recorded; first id of a page of entries that the exporter has
# read and exported; the id after its last one; number of its entries; then each user of it with the number of the
# user's entries. Removes them, with their ids in the lists of their users. Returns how many, or -1 if nothing was
# removed, as the stream begins with another entry or the record is another one.
#
# A list begins with the ids of the page, unless entries of it are gone, as those of an erased user; so one call a user
# removes them, where `TRIM` needs one for an entry, and reads no entry. Entries of a page that are gone are missing in
# what XTRIM removes; then the ids are compared.
TRIM_READ: Final = Script("""
local exported = redis.call('HGET', KEYS[1], 'exported')
local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', '1')[1]
if exported ~= ARGV[1] or not first or first[1] ~= ARGV[2] then
    return -1
end
local removed, of_users = redis.call('XTRIM', KEYS[2], 'MINID', ARGV[3]), KEYS[2] .. '_ids:'
if removed == tonumber(ARGV[4]) then
    for at = 5, #ARGV, 2 do
        redis.pcall('LTRIM', of_users .. ARGV[at], ARGV[at + 1], '-1')
    end
    return removed
end
local function parts(id)
    local time, sequence = string.match(id, '(%d+)-(%d+)')
    return tonumber(time), tonumber(sequence)
end
local end_time, end_sequence = parts(ARGV[3])
for at = 5, #ARGV, 2 do
    local list, gone = of_users .. ARGV[at], 0
    for _, id in ipairs(redis.pcall('LRANGE', list, '0', ARGV[at + 1] - 1)) do
        local time, sequence = parts(id)
        if time < end_time or (time == end_time and sequence < end_sequence) then
            gone = gone + 1
        end
    end
    redis.pcall('LTRIM', list, gone, '-1')
end
return removed
""")

# KEYS: export, erasures. ARGV: hash and id of each erasure that is in the directory now. One that a later erasure
# replaced stays. Returns how many are left.
ERASURES_WRITTEN: Final = Script(
    ALSO_WHEN_FULL
    + """
for at = 1, #ARGV, 2 do
    if redis.call('HGET', KEYS[2], ARGV[at]) == ARGV[at + 1] then
        redis.call('HDEL', KEYS[2], ARGV[at])
    end
end
local left = redis.call('HLEN', KEYS[2])
if left == 0 then
    redis.call('HDEL', KEYS[1], 'erasing')
else
    local time = redis.call('TIME')
    redis.call('HSET', KEYS[1], 'erasing', string.format('%.0f', tonumber(time[1]) * 1000))
end
return left
"""
)
