"""The keys of histories in Redis: 64 buckets of users, and the layout before them. Pure: no Redis in here.

A user belongs to the bucket ``crc32(user id in UTF-8) mod 64`` for ever. All keys of a bucket carry its hash tag, so a
Redis Cluster keeps them on one node and a script may use them together.
"""

import zlib
from dataclasses import dataclass
from typing import Final

BUCKETS: Final = 64


@dataclass(frozen=True, slots=True)
class UserKeys:
    """The keys that concern one user.

    Attributes:
        stream: events of all users of the bucket.
        history: newest events of the user.
        event_ids: event ids of the user, against which retries are recognised.
        stream_ids: ids of the user's entries in ``stream``.
        old_history: ``history`` in the layout before buckets.
        old_event_ids: ``event_ids`` likewise.
    """

    stream: str
    history: str
    event_ids: str
    stream_ids: str
    old_history: str
    old_event_ids: str


def bucket_of(user_id: str) -> int:
    """The bucket of a user, 0 … 63."""
    return zlib.crc32(user_id.encode()) % BUCKETS


def bucket_cap(stream_cap: int) -> int:
    """Events that the stream of one bucket keeps, at least one, where all buckets together keep ``stream_cap``."""
    return -(-stream_cap // BUCKETS)


def stream_key(prefix: str, bucket: int) -> str:
    """The stream of a bucket."""
    return f"{prefix}:{{b{bucket:03d}}}:stream"


def old_stream_key(prefix: str) -> str:
    """The one stream of the layout before buckets."""
    return f"{prefix}:events"


def keys_of(prefix: str, user_id: str) -> UserKeys:
    """The keys of a user."""
    bucket = f"{prefix}:{{b{bucket_of(user_id):03d}}}"
    old = user_id.replace("%", "%25").replace("}", "%7D")  # the hash tag of the old layout ended at the first brace
    return UserKeys(
        stream=f"{bucket}:stream",
        history=f"{bucket}:history:{user_id}",
        event_ids=f"{bucket}:event_ids:{user_id}",
        stream_ids=f"{bucket}:stream_ids:{user_id}",
        old_history=f"{prefix}:{{{old}}}:history",
        old_event_ids=f"{prefix}:{{{old}}}:events",
    )
