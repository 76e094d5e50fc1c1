"""The Lua scripts of `service.stores.deployment.session_merge`; each uses the keys of one bucket."""

from typing import Final

from service.stores.redis_merge_scripts import JOIN, RECORD_MERGE
from service.stores.redis_pipeline import Script

COPIED: Final = "\x1f"
"""What follows a session in the name of the field that says which claim was copied; ids have no control characters."""

# KEYS: merges of the user, merges in progress. ARGV: session, a new token, a token that was refused, most merged
# sessions, most merges in progress, seconds to live. Returns the token of this attempt, or '' and a session that must
# be erased before, as the user has too many. Attempts at the same time have the same token, so that an erasure that
# fences the token that it finds fences them all.
PREPARE: Final = Script("""
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[4]) and not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
    return {'', redis.call('ZRANGE', KEYS[1], 0, 0)[1]}
end
if redis.call('HLEN', KEYS[2]) >= 2 * tonumber(ARGV[5]) then
    return redis.error_reply('MERGESFULL too many merges into this user were not finished')
end
local token = redis.call('HGET', KEYS[2], ARGV[1])
if not token or token == ARGV[3] then
    token = ARGV[2]
    redis.call('HSET', KEYS[2], ARGV[1], token)
end
redis.call('EXPIRE', KEYS[2], ARGV[6])
return {token, ''}
""")

# KEYS: of the session, as in `UserKeys`, then the fenced tokens of its bucket. ARGV: user, id of the claim if there is
# none yet, seconds to live of a session's data, session, cap of a bucket's stream, how many entries it drops at once,
# token of this attempt. Returns the user that has the session, the id of its claim, the session's history, event ids
# with their scores, and impressions, and how many events were cut at the cap before they were exported. The id is '' if
# nothing is left to be moved, and so is the user if the token is fenced.
#
# From now on `APPEND` stores nothing for the session, so what is returned stays as it is.
CLAIM: Final = Script(
    RECORD_MERGE
    + """
local call = redis.call
local user = call('HGET', KEYS[6], 'user')
local claim = call('HGET', KEYS[6], 'moving')
if user == ARGV[1] then
    call('EXPIRE', KEYS[6], ARGV[3])
end
if user and (user ~= ARGV[1] or not claim) then
    return {user, '', {}, {}, {}, 0}
end
if call('HGET', KEYS[7], ARGV[7]) then
    return {'', '', {}, {}, {}, 0}
end
local history, ids = call('LRANGE', KEYS[2], 0, -1), call('ZRANGE', KEYS[3], 0, -1, 'WITHSCORES')
local impressions, lost = call('LRANGE', KEYS[5], 0, -1), 0
if not user then
    call('XLEN', KEYS[1])
    call('LRANGE', KEYS[4], 0, 0)
    claim = ARGV[2]
    record_merge(KEYS[1], KEYS[4], ARGV[4], ARGV[1], call('TIME'))
    call('HSET', KEYS[6], 'user', ARGV[1], 'moving', claim)
    call('EXPIRE', KEYS[6], ARGV[3])
    lost = cut_if_full(KEYS[1], tonumber(ARGV[5]), tonumber(ARGV[6]))
end
return {ARGV[1], claim, history, ids, impressions, lost}
"""
)

# KEYS: of the user, as in `UserKeys`, then its merges in progress. ARGV: caps of history, event ids and impressions,
# seconds to live of the first two and of the impressions, session, token of this attempt, id of the claim, seconds to
# live of the merges in progress, numbers of entries and of event ids with scores, then the entries, these, and the
# impressions. Returns 1 if they are the user's now, or have been before; 0 if another attempt or an erasure came
# between.
COPY: Final = Script(
    JOIN
    + """
local session, copied = ARGV[6], ARGV[6] .. '\\31'
local known = call('HMGET', KEYS[7], session, copied)
if known[2] == ARGV[8] then
    return 1
end
if known[1] ~= ARGV[7] then
    return 0
end
local at = 11
local function taken(count)
    local found = {}
    for place = 1, count do
        found[place] = ARGV[at + place]
    end
    at = at + count
    return found
end
local moved, ids = taken(tonumber(ARGV[10])), taken(tonumber(ARGV[11]))
local shown = joined(KEYS[5], taken(#ARGV - at))
local entries = call('LRANGE', KEYS[2], 0, -1)
call('ZCARD', KEYS[3])
call('ZCARD', KEYS[6])
join(KEYS[2], KEYS[3], KEYS[5], entries, moved, {ids}, shown, {ARGV[1], ARGV[2], ARGV[3]}, {ARGV[4], ARGV[5]})
call('ZADD', KEYS[6], call('TIME')[1], session)
call('HSET', KEYS[7], copied, ARGV[8])
call('HDEL', KEYS[7], session)
call('EXPIRE', KEYS[7], ARGV[9])
return 1
"""
)

# KEYS: of the session, as in `UserKeys`. ARGV: id of the claim. Deletes what was copied; returns 1.
RELEASE: Final = Script("""
if redis.call('HGET', KEYS[6], 'moving') == ARGV[1] then
    redis.call('UNLINK', KEYS[2], KEYS[3], KEYS[5])
    redis.call('HDEL', KEYS[6], 'moving')
end
return 1
""")

# KEYS: merges in progress. ARGV: session, id of the claim. Forgets a copy whose source is deleted, and the token of an
# attempt that may have read the source before; returns 1.
FINISH: Final = Script("""
local copied = ARGV[1] .. '\\31'
if redis.call('HGET', KEYS[1], copied) == ARGV[2] then
    redis.call('HDEL', KEYS[1], copied, ARGV[1])
end
return 1
""")

# KEYS: user of the session, fenced tokens of its bucket. ARGV: user, token, seconds to live. Returns 1 if the session
# is the user's; else 0, and no attempt with this token can claim it any more. `HDEL` comes first so that Redis does not
# refuse the rest where it is out of memory, see `ALSO_WHEN_FULL`.
FENCE: Final = Script("""
if redis.call('HGET', KEYS[1], 'user') == ARGV[1] then
    return 1
end
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[2], '')
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 0
""")

# KEYS: merges in progress. ARGV: fields and values that were read there. Deletes those that are the same.
END: Final = Script("""
for at = 1, #ARGV, 2 do
    if redis.call('HGET', KEYS[1], ARGV[at]) == ARGV[at + 1] then
        redis.call('HDEL', KEYS[1], ARGV[at])
    end
end
return 1
""")
