"""Names the Redis keys of histories, in 64 buckets of users and in the older layout without buckets.

A user always belongs to the bucket ``crc32(user id in UTF-8) mod 64``. All keys of a bucket carry its hash tag, so a
Redis Cluster keeps them on one node and a script may use them together.
"""

import zlib
from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple

BUCKETS: Final = 64


class UserKeys(NamedTuple):
    """The keys that hold data of one user.

    Attributes:
        stream: events of all users of the bucket.
        history: newest events of the user.
        event_ids: event ids of the user, by which retries are recognised.
        stream_ids: ids of the user's entries in ``stream``.
        impressions: newest impressions of the user.
        merges: sessions that were merged into the user; of an anonymous session the user that it was merged into.
    """

    stream: str
    history: str
    event_ids: str
    stream_ids: str
    impressions: str
    merges: str


class OldUserKeys(NamedTuple):
    """The keys of one user in the layout without buckets.

    Attributes:
        history: as in `UserKeys`.
        event_ids: as in `UserKeys`.
    """

    history: str
    event_ids: str


def bucket_of(user_id: str) -> int:
    """The bucket of a user, 0 … 63."""
    return zlib.crc32(user_id.encode()) % BUCKETS


def bucket_cap(stream_cap: int) -> int:
    """Cap of the stream of one bucket, at least 1, so that all buckets together keep ``stream_cap`` events."""
    return -(-stream_cap // BUCKETS)


def dropped_at_once(cap: int) -> int:
    """How many of its oldest entries a stream with this cap drops at once: a hundredth, at most 100."""
    return max(1, min(100, cap // 100))


def stream_key(prefix: str, bucket: int) -> str:
    """The stream of a bucket."""
    return f"{prefix}:{{b{bucket:03d}}}:stream"


def export_key(prefix: str, bucket: int) -> str:
    """How far the stream of a bucket is exported, and where to."""
    return f"{prefix}:{{b{bucket:03d}}}:export"


def erasures_key(prefix: str, bucket: int) -> str:
    """Erasures of a bucket that the export has not taken."""
    return f"{prefix}:{{b{bucket:03d}}}:erasures"


def old_stream_key(prefix: str) -> str:
    """The only stream of the layout without buckets."""
    return f"{prefix}:events"


def absent_stream_key(prefix: str, user_id: str) -> str:
    """A key of the user's bucket that is never written: in a cluster it stands for the stream of the old layout."""
    return f"{prefix}:{{b{bucket_of(user_id):03d}}}:events"


def merging_key(prefix: str, user_id: str) -> str:
    """Merges into a user that are in progress in a cluster, see `service.stores.deployment.session_merge`."""
    return f"{prefix}:{{b{bucket_of(user_id):03d}}}:merging:{user_id}"


def fenced_key(prefix: str, owner: str) -> str:
    """Tokens of merges that may claim no session of the owner's bucket any more, as their user was erased."""
    return f"{prefix}:{{b{bucket_of(owner):03d}}}:fenced_merges"


def keys_of(prefix: str, user_id: str) -> UserKeys:
    """The keys of a user, or of a session by its `service.stores.protocols.session_owner`."""
    bucket = _bucket_prefixes(prefix)[bucket_of(user_id)]
    return UserKeys(*event_keys(prefix, user_id), f"{bucket}:impressions:{user_id}", f"{bucket}:merges:{user_id}")


def event_keys(prefix: str, owner: str) -> tuple[str, str, str, str]:
    """The keys that each event of a user may need: the first four of :func:`keys_of`."""
    bucket = _bucket_prefixes(prefix)[bucket_of(owner)]
    return (
        f"{bucket}:stream",
        f"{bucket}:history:{owner}",
        f"{bucket}:event_ids:{owner}",
        f"{bucket}:stream_ids:{owner}",
    )


@cache
def _bucket_prefixes(prefix: str) -> Sequence[str]:
    return [f"{prefix}:{{b{bucket:03d}}}" for bucket in range(BUCKETS)]


def old_keys_of(prefix: str, user_id: str) -> OldUserKeys:
    """The keys of a user in the layout without buckets."""
    tag = user_id.replace("%", "%25").replace("}", "%7D")  # a hash tag ends at the first brace
    return OldUserKeys(f"{prefix}:{{{tag}}}:history", f"{prefix}:{{{tag}}}:events")
