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

# KEYS: answers, order, size and users of an experiment of each bucket. ARGV: seconds to keep, most answers of an owner,
# most answers without a user that have one request id, most bytes of a bucket, bytes that an answer costs besides its
# record, most users of an experiment in a bucket, seconds that they are kept, then for each answer the position of its
# first key in KEYS, its owner, its record, and where its users are to be counted the fingerprint of its user (8 bytes)
# with the name of its experiment, else ''. Returns for each answer how many of its owner were stored before, whether it
# is the first of its user in the experiment (1 or 0), then the time of each answer that is dropped though its window
# has not ended. Those for which the bucket is too large are named by the last answer of that bucket.
#
# The users are fields of one hash, in which the field '' names the experiment. One experiment runs at a time, so those
# of another one are dropped; replicas that do not know the new one yet make a few users count twice, in every arm
# alike. Users beyond the most are not counted.
#
# Every answer has an entry in the order of the bucket: its time (4 bytes), its cost (2 bytes) and its owner. The oldest
# are dropped while they are too old or the bucket is too large; with an entry goes the answer, if its owner still has
# it. All keys expire, so nothing stays when traffic ends. The answers of all owners of a bucket are one hash, since a
# key for each owner would take 90 bytes more.
#
# A Redis that is nearly full may have evicted one key of a bucket. Answers whose order is gone are dropped too, as they
# would stay for as long as there is traffic, and count in the size; a size that is gone is made of the order.
#
# An answer of a clock that was far ahead would keep those behind it in the order. It is dropped where the time of the
# newest answer and the clock of Redis both say that its window has not begun.
RECORD: Final = Script(
    _READ
    + """
local keep, most, most_of_request = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local most_bytes, extra, most_users = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local noted = {}
local function is_first(key, mark)
    if mark == '' then
        return 0
    end
    local experiment, known = string.sub(mark, 9), noted[key]
    if not known then
        known = {experiment = redis.call('HGET', key, ''), fields = redis.call('HLEN', key)}
        noted[key] = known
    end
    if known.experiment ~= experiment then
        redis.call('UNLINK', key)
        redis.call('HSET', key, '', experiment)
        known.experiment, known.fields, known.changed = experiment, 1, true
    end
    if known.fields > most_users or redis.call('HSET', key, string.sub(mark, 1, 8), '') == 0 then
        return 0
    end
    known.fields, known.changed = known.fields + 1, true
    return 1
end
local function older_than(text, since, count)
    local at, found = 1, 0
    while at <= #text and found < count and time_at(text, at) >= since do
        at, found = at + length_at(text, at), found + 1
    end
    return at, found
end
local function note(result, from, text, since)
    while from <= #text and time_at(text, from) >= since do
        result[#result + 1] = time_at(text, from)
        from = from + length_at(text, from)
    end
end
local function is_in_window(time, since)
    return time >= since and (time <= since + 2 * keep or time <= redis.call('TIME')[1] + keep)
end
local function opened(first, since)
    local bucket = {cost = 0, answers = 0, lost = {}}
    local answers, order, size = KEYS[first], KEYS[first + 1], KEYS[first + 2]
    if redis.call('EXISTS', order, size) == 2 then
        return bucket
    end
    if redis.call('EXISTS', order) == 1 then
        local bytes = 0
        for _, entry in ipairs(redis.call('LRANGE', order, 0, -1)) do
            local high, low = string.byte(entry, 5, 6)
            bytes = bytes + high * 256 + low
        end
        redis.call('HSET', size, 'bytes', string.format('%.0f', bytes))
    elseif redis.call('EXISTS', answers, size) > 0 then
        for at, text in ipairs(redis.call('HGETALL', answers)) do
            if at % 2 == 0 then
                note(bucket.lost, 1, text, since)
            end
        end
        redis.call('UNLINK', answers, size)
    end
    return bucket
end
local results, buckets = {}, {}
for at = 8, #ARGV, 4 do
    local first, owner, record = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2]
    local most_here = string.sub(owner, 1, 2) == '\\31\\31' and most_of_request or most
    local since = time_at(record, 1) - keep
    local bucket = buckets[first] or opened(first, since)
    local text = redis.call('HGET', KEYS[first], owner) or ''
    local cut, found = older_than(text, since, most_here - 1)
    local result = {found, is_first(KEYS[first + 3], ARGV[at + 3])}
    note(result, cut, text, since)
    redis.call('HSET', KEYS[first], owner, record .. string.sub(text, 1, cut - 1))

    local cost = #record + extra + 2 * #owner
    local entry = string.sub(record, 3, 6) .. string.char(math.floor(cost / 256), cost % 256) .. owner
    redis.call('RPUSH', KEYS[first + 1], entry)
    bucket.cost, bucket.answers = bucket.cost + cost, bucket.answers + 1
    bucket.entry, bucket.since, bucket.result = entry, since, result
    buckets[first] = bucket
    results[#results + 1] = result
end
for first, bucket in pairs(buckets) do
    local answers, order, size, since = KEYS[first], KEYS[first + 1], KEYS[first + 2], bucket.since
    local bytes, dropped, freed = redis.call('HINCRBY', size, 'bytes', bucket.cost), 0, 0
    while dropped < 100 * bucket.answers do
        local oldest = redis.call('LRANGE', order, 0, 0)[1]
        local time = time_at(oldest, -1)
        if oldest == bucket.entry or (bytes - freed <= most_bytes and is_in_window(time, since)) then
            break
        end
        redis.call('LTRIM', order, 1, -1)
        local high, low = string.byte(oldest, 5, 6)
        freed = freed + high * 256 + low
        local of = string.sub(oldest, 7)
        local kept = redis.call('HGET', answers, of)
        if kept then
            local rest = older_than(kept, time + 1, 65535) - 1
            note(bucket.result, rest + 1, kept, since)
            if rest == 0 then
                redis.call('HDEL', answers, of)
            elseif rest < #kept then
                redis.call('HSET', answers, of, string.sub(kept, 1, rest))
            end
        end
        dropped = dropped + 1
    end
    for _, time in ipairs(bucket.lost) do
        bucket.result[#bucket.result + 1] = time
    end
    if freed > 0 then
        redis.call('HINCRBY', size, 'bytes', -freed)
    end
    redis.call('EXPIRE', answers, keep)
    redis.call('EXPIRE', order, keep)
    redis.call('EXPIRE', size, keep)
    local users = noted[KEYS[first + 3]]
    if users and users.changed then
        redis.call('EXPIRE', KEYS[first + 3], ARGV[7])
    end
end
return results
"""
)

# KEYS: answers of each bucket. ARGV: now, seconds of the window, then for each owner its name and what is asked about
# it: a byte with the position of its bucket in KEYS, then for each outcome its bit (1 byte), the fingerprint of the
# item (3), that of the request (6), and the latest time of an answer that it may belong to (4); the bit is 128 more if
# the request is given. Outcomes are numbered from 0 in this order. Returns the number and the result of each outcome of
# an item that an answer shows: 'd' if the newest that does has this outcome already, else the head and the context of
# the answer, the place of the item in it, counted from 0, and its new mark; for an interleaved answer also how many
# items of the first and of the second arm have this outcome now.
#
# Most events are about items that no answer shows, so one search over all answers of the owner goes first.
ATTRIBUTE: Final = Script(
    _READ
    + """
local byte, sub, find = string.byte, string.sub, string.find
local since = tonumber(ARGV[1]) - tonumber(ARGV[2])
local function has(mark, bit)
    return math.floor(mark / bit) % 2 == 1
end
local function credit(text, marks, count, new, bit)
    local arms = {0, 0}
    for mark_at = marks, marks + count - 1 do
        local mark = byte(text, mark_at)
        if mark_at == new or has(mark, bit) then
            local arm = math.floor(mark / 64) % 2 + 1
            arms[arm] = arms[arm] + 1
        end
    end
    return string.char(arms[1], arms[2])
end
local function place_of(item, items)
    local at = find(items, item, 1, true)
    while at and at % 3 ~= 1 do
        at = find(items, item, at + 1, true)
    end
    return at and (at - 1) / 3
end
local function attributed(text, bit, item, request, latest)
    local at = find(text, item, 1, true) and 1 or #text + 1
    while at <= #text and time_at(text, at) >= since do
        if time_at(text, at) <= latest and (not request or sub(text, at + 6, at + 11) == request) then
            local count, context = byte(text, at + 14, at + 15)
            local items = at + 16 + context
            local place = place_of(item, sub(text, items, items + 3 * count - 1))
            if place then
                local mark_at = items + 3 * count + place
                local mark = byte(text, mark_at)
                if has(mark, bit) then
                    return text, 'd'
                end
                local result = sub(text, at, items - 1) .. string.char(place, mark + bit)
                if byte(text, at + 16) == 254 then
                    result = result .. credit(text, items + 3 * count, count, mark_at, bit)
                end
                return sub(text, 1, mark_at - 1) .. string.char(mark + bit) .. sub(text, mark_at + 1), result
            end
        end
        at = at + length_at(text, at)
    end
    return text
end
local results, number = {}, 0
for at = 3, #ARGV, 2 do
    local owner, asked = ARGV[at], ARGV[at + 1]
    local key = KEYS[byte(asked)]
    local stored = redis.call('HGET', key, owner)
    local text = stored
    for from = 2, stored and #asked or 0, 14 do
        local bit, result = byte(asked, from), nil
        local request = bit >= 128 and sub(asked, from + 4, from + 9)
        text, result = attributed(text, bit % 128, sub(asked, from + 1, from + 3), request, time_at(asked, from + 8))
        if result then
            results[#results + 1] = number + (from - 2) / 14
            results[#results + 1] = result
        end
    end
    if text ~= stored then
        redis.call('HSET', key, owner, text)
    end
    number = number + (#asked - 1) / 14
end
return results
"""
)

# KEYS: answers, order, size and users of an experiment of the bucket. ARGV: owner, its fingerprint. Returns how many
# entries of the order were deleted.
FORGET: Final = Script("""
redis.call('HDEL', KEYS[1], ARGV[1])
if redis.call('HDEL', KEYS[4], ARGV[2]) == 1 and redis.call('HLEN', KEYS[4]) == 1 then
    redis.call('UNLINK', KEYS[4])
end
local deleted, is_counted = 0, redis.call('EXISTS', KEYS[3]) == 1
for _, entry in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
    if string.sub(entry, 7) == ARGV[1] then
        local high, low = string.byte(entry, 5, 6)
        redis.call('LREM', KEYS[2], 1, entry)
        if is_counted then
            redis.call('HINCRBY', KEYS[3], 'bytes', -(high * 256 + low))
        end
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

# KEYS: the number of the last batch of the process, then the hashes. ARGV: number of the batch, seconds that the first
# key is kept, number of increments, then for each of them the position of its hash in KEYS, the field and the amount;
# then the seconds to live of each hash. A batch that is sent again, as its reply was lost, changes nothing: its number
# is kept as long as the counts, as Redis may be gone for long between both.
#
# All or none: a batch that fails in the middle, because of a key of another type or a command that the user may not
# run, is taken back, as it is sent again. A field whose count would exceed 64 bits, or that another program wrote,
# stays as it is: no repetition could change it. Returns the numbers of these increments, counted from 0, with spaces
# between them; a batch that is sent again has the same reply.
ADD: Final = Script("""
if redis.call('HGET', KEYS[1], 'number') == ARGV[1] then
    return redis.call('HGET', KEYS[1], 'refused') or ''
end
local last, added, refused = 3 + 3 * tonumber(ARGV[3]), {}, {}
local function stays(failure)
    return string.find(failure, 'overflow', 1, true) or string.find(failure, 'not an integer', 1, true)
end
local function add()
    for at = 4, last, 3 do
        local count = redis.pcall('HINCRBY', KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2])
        if type(count) ~= 'table' then
            added[#added + 1] = at
        elseif stays(count.err) then
            refused[#refused + 1] = string.format('%d', (at - 4) / 3)
        else
            error(count)
        end
    end
    for key = 2, #KEYS do
        redis.call('EXPIRE', KEYS[key], ARGV[last + key - 1])
    end
    redis.call('HSET', KEYS[1], 'number', ARGV[1], 'refused', table.concat(refused, ' '))
    redis.call('EXPIRE', KEYS[1], ARGV[2])
end
local whole, failure = pcall(add)
if not whole then
    for _, at in ipairs(added) do
        local key, field, amount = KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2]
        local opposite = string.sub(amount, 1, 1) == '-' and string.sub(amount, 2) or '-' .. amount
        if redis.pcall('HINCRBY', key, field, opposite) == 0 then
            redis.pcall('HDEL', key, field)
        end
    end
    return redis.error_reply(type(failure) == 'table' and failure.err or failure)
end
return table.concat(refused, ' ')
""")
