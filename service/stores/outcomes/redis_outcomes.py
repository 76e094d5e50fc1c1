"""Stores answers for the attribution window and the counts of their outcomes in Redis.

Keys, all under one prefix (default ``vlm2rec``), ``bNNN`` being the bucket of the owner as in
`service.stores.history_keys`:

====================================  ======  =========================================================================
``<prefix>:{bNNN}:answers``           hash    the newest answers of each owner, see `answer_records`
``<prefix>:{bNNN}:answers_order``     list    time, cost in bytes and owner of each answer of the bucket, oldest first
``<prefix>:{bNNN}:answers_size``      hash    ``bytes`` of all answers of the bucket
``<prefix>:{bNNN}:experiment_users``  hash    fingerprints of users with an answer in an experiment, its name under ''
``<prefix>:{outcomes}:<name>``        hash    counts by field
``<prefix>:{outcomes}:definition:…``  hash    the definition of an experiment
``<prefix>:{outcomes}:batches:…``     hash    ``number`` of the last batch of counts of a process
====================================  ======  =========================================================================

An owner is a user, or an answer without a user. All keys expire.
"""

import asyncio
import re
import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from time import time
from typing import TYPE_CHECKING, Final, TypeVar

from service.errors import OutcomesUnavailable
from service.settings.groups import OutcomeSettings, RedisSettings
from service.stores.deployment.opening import open_pipeline
from service.stores.history_keys import BUCKETS, bucket_of
from service.stores.outcomes.answer_records import (
    HEAD,
    MARK_OF,
    AnswerRecord,
    contexts_of,
    is_of_second,
    item_numbers,
    request_fingerprint,
    slot_of,
    user_fingerprint,
)
from service.stores.outcomes.outcome_store import (
    DUPLICATE,
    AnsweredItem,
    Attribution,
    CountBatch,
    InterleavedCredit,
    ItemOutcome,
    RecordedAnswer,
)
from service.stores.outcomes.redis_outcome_scripts import ADD, ATTRIBUTE, DESCRIBE, DESCRIPTION, FORGET, RECORD
from service.stores.redis_client import UNWATCHED, RedisWatch, translated
from service.stores.redis_renewal import Renewal

if TYPE_CHECKING:
    from service.stores.redis_connection import Part

KEPT_S: Final = 90 * 86_400
"""Seconds that counts and definitions are kept after their last change."""

_MOST_OF_OWNER: Final = 20
_MOST_OF_REQUEST: Final = 256  # without a user; as many as the longest batch has, which share its request id
_COST_BYTES: Final = 100  # of an answer besides its record and its owner, measured (tests/service/stores)
_USERS_SHARE: Final = 0.1  # of the memory of the answers, for users of an experiment besides
_USER_BYTES: Final = 80
_NAMES_REQUEST: Final = 128  # added to the bit of an outcome; the script knows it too
_ASKED: Final = struct.Struct(">I6sI")  # the mark and the item, the request, the latest time
_NO_REQUEST: Final = bytes(6)
_COUNT: Final = re.compile(rb"-?[0-9]{1,19}")
_COUNT_END: Final = 2**63
_LAST_TIME: Final = 2**32 - 1  # that has a place in four bytes
_MOST_READS: Final = 64  # at once, so that a long period does not fill the queue of the pipeline

_Entry = TypeVar("_Entry", AnswerRecord, ItemOutcome)
_Result = TypeVar("_Result")


class RedisOutcomes:
    """Answers and outcomes in Redis; the module lists the keys.

    Connects on first use. It has a connection and a breaker of its own, so what hangs here delays no history.

    Args:
        redis: URL, key prefix and timeout.
        settings: window and memory.
        watch: callbacks that observe the calls; the state of this breaker is not reported.
        renewal: shared with all other pipelines to the same Redis.

    Raises:
        SettingsError: redis-py does not understand the URL.
    """

    def __init__(
        self,
        redis: RedisSettings,
        settings: OutcomeSettings,
        *,
        watch: RedisWatch = UNWATCHED,
        renewal: Renewal | None = None,
    ) -> None:
        self._pipeline = open_pipeline(redis, watch=watch, renewal=renewal)
        self._prefix = redis.redis_prefix
        self._bucket_keys = [_bucket_keys(redis.redis_prefix, bucket) for bucket in range(BUCKETS)]
        self._window_s = settings.window_s
        self._bucket_bytes = settings.memory_bytes // BUCKETS
        self._most_users = int(_USERS_SHARE * self._bucket_bytes) // _USER_BYTES
        self._watch = watch
        self._by_bucket = redis.kind == "cluster"  # a script may use the keys of one slot

    async def record(self, answers: Sequence[AnswerRecord]) -> list[RecordedAnswer | OutcomesUnavailable]:
        """Store answers; see `OutcomeStore.record`. One call, in a cluster one for each bucket."""
        return await self._in_calls(answers, self._record)

    async def attribute(self, outcomes: Sequence[ItemOutcome]) -> list[Attribution]:
        """Note outcomes; see `OutcomeStore.attribute`. One call, in a cluster one for each bucket."""
        return await self._in_calls(outcomes, self._attribute)

    async def _in_calls(
        self,
        entries: Sequence[_Entry],
        call: Callable[[Sequence[_Entry]], Awaitable[list[_Result | OutcomesUnavailable]]],
    ) -> list[_Result | OutcomesUnavailable]:
        """The results of as few calls as the keys allow, in the order of the entries."""
        if not self._by_bucket:
            return await call(entries) if entries else []
        places: dict[int, list[int]] = {}
        for place, entry in enumerate(entries):
            places.setdefault(bucket_of(entry.owner), []).append(place)
        groups = [[entries[place] for place in of_bucket] for of_bucket in places.values()]
        replies = await asyncio.gather(*map(call, groups))
        found = {
            place: result
            for of_bucket, results in zip(places.values(), replies, strict=True)
            for place, result in zip(of_bucket, results, strict=True)
        }
        return [found[place] for place in range(len(entries))]

    async def _record(self, answers: Sequence[AnswerRecord]) -> list[RecordedAnswer | OutcomesUnavailable]:
        keys = _Keys(self._bucket_keys, 4)
        arguments: list[Part] = [
            *(self._window_s, _MOST_OF_OWNER, _MOST_OF_REQUEST, self._bucket_bytes, _COST_BYTES),
            *(self._most_users, KEPT_S),
        ]
        for answer in answers:
            arguments += (keys.first_of(answer.owner), answer.owner, answer.encode(), _user_mark(answer))
        try:
            with translated("record", OutcomesUnavailable, self._watch):
                replies = await self._pipeline.run(RECORD, keys.names, arguments, list)
        except OutcomesUnavailable as unavailable:
            return [unavailable] * len(answers)
        return [
            RecordedAnswer(earlier, dropped, is_first=bool(first))
            for answer, (earlier, first, *dropped) in zip(answers, replies, strict=True)
        ]

    async def _attribute(self, outcomes: Sequence[ItemOutcome]) -> list[Attribution]:
        keys, owners = _Keys(self._bucket_keys, 1), dict[str, tuple[list[bytes], list[int]]]()
        for place, (outcome, question) in enumerate(zip(outcomes, _asked(outcomes), strict=True)):
            owner = outcome.owner
            if (known := owners.get(owner)) is None:
                known = owners[owner] = ([keys.first_of(owner).to_bytes()], [])
            known[0].append(question)
            known[1].append(place)
        arguments: list[Part] = [int(time()), self._window_s]
        for owner, (asked, _) in owners.items():
            arguments += (owner, b"".join(asked))
        try:
            with translated("attribute", OutcomesUnavailable, self._watch):
                reply = await self._pipeline.run(ATTRIBUTE, keys.names, arguments, list)
        except OutcomesUnavailable as unavailable:
            return [unavailable] * len(outcomes)
        results: list[Attribution] = [None] * len(outcomes)
        order = [place for _, places in owners.values() for place in places]
        for number, found in zip(reply[::2], reply[1::2], strict=True):
            results[order[number]] = DUPLICATE if found == b"d" else _shown(found)
        return results

    async def forget(self, owner: str) -> None:
        """Delete the answers of an owner; see `OutcomeStore.forget`."""
        with translated("forget", OutcomesUnavailable, self._watch):
            arguments: list[Part] = [owner, user_fingerprint(owner)]
            await self._pipeline.run(FORGET, self._bucket_keys[bucket_of(owner)], arguments, int)

    async def add(self, batch: CountBatch) -> set[tuple[str, str]]:
        """Add to counts; see `OutcomeStore.add`."""
        names = list(dict.fromkeys(name for name, _ in batch.amounts))
        places = {name: place for place, name in enumerate(names, 2)}
        increments = [part for (name, field), amount in batch.amounts.items() for part in (places[name], field, amount)]
        arguments = [batch.number, KEPT_S, len(batch.amounts), *increments]
        keys = [self._counts_key(name) for name in (f"batches:{batch.writer}", *names)]
        with translated("count", OutcomesUnavailable, self._watch):
            refused = await self._pipeline.run(ADD, keys, [*arguments, *(KEPT_S for _ in names)], bytes)
        fields = list(batch.amounts) if refused else []
        return {fields[int(number)] for number in refused.split()}

    async def counts(self, names: Sequence[str]) -> list[dict[str, int]]:
        """Counts; see `OutcomeStore.counts`."""
        found: list[dict[str, int]] = []
        with translated("counts", OutcomesUnavailable, self._watch):
            for start in range(0, len(names), _MOST_READS):
                keys = [self._counts_key(name) for name in names[start : start + _MOST_READS]]
                replies = await asyncio.gather(*(self._pipeline.call("HGETALL", key, kind=list) for key in keys))
                found += [_counts(reply) for reply in replies]
        return found

    async def describe(self, experiment: str, definition: str) -> None:
        """Keep a definition; see `OutcomeStore.describe`."""
        key = self._counts_key(f"definition:{experiment}")
        with translated("describe", OutcomesUnavailable, self._watch):
            await self._pipeline.run(DESCRIBE, [key], [definition, KEPT_S], int)

    async def description(self, experiment: str) -> str | None:
        """A definition; see `OutcomeStore.description`."""
        with translated("describe", OutcomesUnavailable, self._watch):
            found = await self._pipeline.run(DESCRIPTION, [self._counts_key(f"definition:{experiment}")], [], bytes)
        return found.decode("utf-8", "replace") or None

    async def close(self) -> None:
        """Close the connections."""
        await self._pipeline.close()

    def _counts_key(self, name: str) -> str:
        return f"{self._prefix}:{{outcomes}}:{name}"


class _Keys:
    """The first keys of the buckets of some owners, each bucket once.

    Args:
        of_buckets: all keys of each bucket.
        each: how many of the keys of a bucket: answers, order, size, users of an experiment.

    Attributes:
        names: of the keys.
    """

    def __init__(self, of_buckets: Sequence[Sequence[str]], each: int) -> None:
        self._of_buckets = of_buckets
        self._each = each
        self._first: dict[int, int] = {}
        self.names: list[str] = []

    def first_of(self, owner: str) -> int:
        """Position of the first key of an owner, counted from 1."""
        bucket = bucket_of(owner)
        first = self._first.get(bucket)
        if first is None:
            first = self._first[bucket] = len(self.names) + 1
            self.names += self._of_buckets[bucket][: self._each]
        return first


def _bucket_keys(prefix: str, bucket: int) -> list[str]:
    kinds = ("answers", "answers_order", "answers_size", "experiment_users")
    return [f"{prefix}:{{b{bucket:03d}}}:{kind}" for kind in kinds]


def _user_mark(answer: AnswerRecord) -> bytes:
    """By what `RECORD` counts the users of an experiment; empty where it counts none.

    An answer of nobody by name counts as no user: the same person would count again with every request.
    """
    if not answer.experiment or answer.is_of_nobody:
        return b""
    return user_fingerprint(answer.owner) + answer.experiment.encode()


def _asked(outcomes: Sequence[ItemOutcome]) -> Iterator[bytes]:
    """What `ATTRIBUTE` reads of each outcome, 14 bytes."""
    items = item_numbers([outcome.item_id for outcome in outcomes])
    for outcome, item in zip(outcomes, items, strict=True):
        mark, request, latest = MARK_OF[outcome.outcome] << 24 | item, outcome.request_id, outcome.latest
        if request is not None:
            yield _ASKED.pack(_NAMES_REQUEST << 24 | mark, request_fingerprint(request), _LAST_TIME)
        elif latest < _LAST_TIME:
            yield _ASKED.pack(mark, _NO_REQUEST, int(max(0.0, latest)))
        else:
            yield _ASKED.pack(mark, _NO_REQUEST, _LAST_TIME)


def _shown(found: bytes) -> AnsweredItem:
    _, seconds, _, offset, _, size = HEAD.unpack_from(found)
    first, second = contexts_of(found[HEAD.size : HEAD.size + size])
    place, mark, *credited = found[HEAD.size + size :]
    position, slot = offset + place + 1, slot_of(mark)
    if second is None:
        return AnsweredItem(position, slot, seconds, first)
    of_first, of_second = credited
    if is_of_second(mark):
        return AnsweredItem(position, slot, seconds, second, InterleavedCredit(of_second, of_first, first.arm))
    return AnsweredItem(position, slot, seconds, first, InterleavedCredit(of_first, of_second, second.arm))


def _counts(reply: Sequence[bytes]) -> dict[str, int]:
    """Alternating fields and numbers; what another program wrote is passed over."""
    pairs = zip(reply[::2], reply[1::2], strict=True)
    return {field.decode("utf-8", "replace"): int(value) for field, value in pairs if _is_count(value)}


def _is_count(stored: bytes) -> bool:
    """Whether Redis could have counted so far: a whole number of 64 bits."""
    return _COUNT.fullmatch(stored) is not None and abs(int(stored)) < _COUNT_END
