"""The Lua scripts of `service.stores.outcomes.redis_outcomes`; Redis runs each of them atomically."""

from typing import Final

from service.stores.redis_pipeline import Script

# Offsets as in `service.stores.outcomes.answer_records`.
_READ: Final = """
local function length_at(text, at)
    local high, low = string.byte(text, at, at + 1)
    return high * 256 + low
end
local function time_at(text, at)
    local a, b, c, d = string.byte(text, at + 2, at + 5)
    return ((a * 256 + b) * 256 + c) * 256 + d
end
"""

# KEYS: answers, order and size of the bucket. ARGV: record, owner, now, seconds to keep, most answers of
# an owner, most bytes of the bucket, bytes that an answer costs besides its record. Returns how many answers of the
# owner were stored before, then the time of each answer that is dropped though its window has not ended.
#
# Every answer has an entry in the order of the bucket: its time (4 bytes), its cost (2 bytes) and its owner. The oldest
# are dropped while they are too old or the bucket is too large; with an entry goes the answer, if its owner still has
# it. All keys expire, so nothing stays when traffic ends. The answers of all owners of a bucket are one hash, since a
# key for each owner would take 90 bytes more.
RECORD: Final = Script(
    _READ
    + """
local record, owner, now, keep = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local most, most_bytes = tonumber(ARGV[5]), tonumber(ARGV[6])
local function older_than(text, since, count)
    local at, found = 1, 0
    while at <= #text and found < count and time_at(text, at) >= since do
        at, found = at + length_at(text, at), found + 1
    end
    return at, found
end
local text = redis.call('HGET', KEYS[1], owner) or ''
local cut, found = older_than(text, now - keep, most - 1)
local result = {found}
local function note(from, text)
    while from <= #text and time_at(text, from) >= now - keep do
        result[#result + 1] = time_at(text, from)
        from = from + length_at(text, from)
    end
end
note(cut, text)
redis.call('HSET', KEYS[1], owner, record .. string.sub(text, 1, cut - 1))

local cost = #record + tonumber(ARGV[7]) + 2 * #owner
local entry = string.sub(record, 3, 6) .. string.char(math.floor(cost / 256), cost % 256) .. owner
redis.call('RPUSH', KEYS[2], entry)
local bytes = redis.call('HINCRBY', KEYS[3], 'bytes', cost)
local dropped = 0
while dropped < 100 do
    local oldest = redis.call('LRANGE', KEYS[2], 0, 0)[1]
    local time = time_at(oldest, -1)
    if oldest == entry or (time >= now - keep and bytes <= most_bytes) then
        break
    end
    redis.call('LTRIM', KEYS[2], 1, -1)
    local high, low = string.byte(oldest, 5, 6)
    bytes = redis.call('HINCRBY', KEYS[3], 'bytes', -(high * 256 + low))
    local of = string.sub(oldest, 7)
    local kept = redis.call('HGET', KEYS[1], of)
    if kept then
        local rest = older_than(kept, time + 1, 65535) - 1
        note(rest + 1, kept)
        if rest == 0 then
            redis.call('HDEL', KEYS[1], of)
        elseif rest < #kept then
            redis.call('HSET', KEYS[1], of, string.sub(kept, 1, rest))
        end
    end
    dropped = dropped + 1
end
for _, key in ipairs(KEYS) do
    redis.call('EXPIRE', key, keep)
end
return result
"""
)

# KEYS: answers of the bucket. ARGV: now, seconds of the window, bit of the outcome, fingerprint of the item, that of
# the request or '', owner. Returns '' if no answer shows the item, 'd' if the newest that does has this outcome
# already, else the head and the context of the answer, the place of the item in it, counted from 0, and its new mark;
# for an interleaved answer also how many items of the first and of the second arm have this outcome now.
ATTRIBUTE: Final = Script(
    _READ
    + """
local bit = tonumber(ARGV[3])
local function credit(text, marks, count, new)
    local arms = {0, 0}
    for mark_at = marks, marks + count - 1 do
        local mark = string.byte(text, mark_at)
        if mark_at == new or math.floor(mark / bit) % 2 == 1 then
            local arm = math.floor(mark / 64) % 2 + 1
            arms[arm] = arms[arm] + 1
        end
    end
    return string.char(arms[1], arms[2])
end
local since, item, request = tonumber(ARGV[1]) - tonumber(ARGV[2]), ARGV[4], ARGV[5]
local text, at = redis.call('HGET', KEYS[1], ARGV[6]) or '', 1
while at <= #text and time_at(text, at) >= since do
    local length = length_at(text, at)
    if request == '' or string.sub(text, at + 6, at + 11) == request then
        local count, context = string.byte(text, at + 14, at + 15)
        local items = at + 16 + context
        for place = 0, count - 1 do
            if string.sub(text, items + 3 * place, items + 3 * place + 2) == item then
                local mark_at = items + 3 * count + place
                local mark = string.byte(text, mark_at)
                if math.floor(mark / bit) % 2 == 1 then
                    return 'd'
                end
                mark = mark + bit
                redis.call('HSET', KEYS[1], ARGV[6],
                    string.sub(text, 1, mark_at - 1) .. string.char(mark) .. string.sub(text, mark_at + 1))
                local result = string.sub(text, at, items - 1) .. string.char(place, mark)
                if string.byte(text, at + 16) == 254 then
                    result = result .. credit(text, items + 3 * count, count, mark_at)
                end
                return result
            end
        end
    end
    at = at + length
end
return ''
"""
)

# KEYS: answers, order and size of the bucket. ARGV: owner. Returns how many entries were deleted.
FORGET: Final = Script("""
redis.call('HDEL', KEYS[1], ARGV[1])
local deleted = 0
for _, entry in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
    if string.sub(entry, 7) == ARGV[1] then
        local high, low = string.byte(entry, 5, 6)
        redis.call('LREM', KEYS[2], 1, entry)
        redis.call('HINCRBY', KEYS[3], 'bytes', -(high * 256 + low))
        deleted = deleted + 1
    end
end
return deleted
""")

# KEYS: the definition of an experiment. ARGV: its text, seconds to live.
DESCRIBE: Final = Script("""
redis.call('HSET', KEYS[1], 'definition', ARGV[1])
return redis.call('EXPIRE', KEYS[1], ARGV[2])
""")

# KEYS: the definition of an experiment. Returns its text, or '' if there is none.
DESCRIPTION: Final = Script("return redis.call('HGET', KEYS[1], 'definition') or ''")

# KEYS: the numbers of the last batches, then the hashes. ARGV: name of the writer, number of the batch, seconds that
# the first key is kept, number of increments, then for each of them the position of its hash in KEYS, the field and the
# amount; then the seconds to live of each hash. A batch that is sent again, as its reply was lost, changes nothing.
ADD: Final = Script("""
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
    return 0
end
local last = 4 + 3 * tonumber(ARGV[4])
for at = 5, last, 3 do
    redis.call('HINCRBY', KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2])
end
for key = 2, #KEYS do
    redis.call('EXPIRE', KEYS[key], ARGV[last + key - 1])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
""")
