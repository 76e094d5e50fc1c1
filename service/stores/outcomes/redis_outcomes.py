"""Stores answers for the attribution window and the counts of their outcomes in Redis.

Keys, all under one prefix (default ``vlm2rec``), ``bNNN`` being the bucket of the owner as in
`service.stores.history_keys`:

====================================  ======  =========================================================================
``<prefix>:{bNNN}:answers``           hash    the newest answers of each owner, see `answer_records`
``<prefix>:{bNNN}:answers_order``     list    time, cost in bytes and owner of each answer of the bucket, oldest first
``<prefix>:{bNNN}:answers_size``      hash    ``bytes`` of all answers of the bucket
``<prefix>:{outcomes}:<name>``        hash    counts by field
``<prefix>:{outcomes}:definition:…``  hash    the definition of an experiment
``<prefix>:{outcomes}:batches``       hash    number of the last batch of counts of each process
====================================  ======  =========================================================================

An owner is a user, or an answer without a user. All keys expire.
"""

import asyncio
from collections.abc import Sequence
from time import time
from typing import Final, Literal

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
    item_fingerprint,
    request_fingerprint,
    slot_of,
)
from service.stores.outcomes.outcome_store import (
    DUPLICATE,
    AnsweredItem,
    CountBatch,
    InterleavedCredit,
    ItemOutcome,
    RecordedAnswer,
)
from service.stores.outcomes.redis_outcome_scripts import ADD, ATTRIBUTE, DESCRIBE, DESCRIPTION, FORGET, RECORD
from service.stores.redis_client import UNWATCHED, RedisWatch, translated
from service.stores.redis_renewal import Renewal

KEPT_S: Final = 90 * 86_400
"""Seconds that counts and definitions are kept after their last change."""

_MOST_OF_OWNER: Final = 20
_COST_BYTES: Final = 100  # of an answer besides its record and its owner, measured (tests/service/stores)
_BATCHES_KEPT_S: Final = 3600
_MOST_READS: Final = 64  # at once, so that a long period does not fill the queue of the pipeline


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
        self._window_s = settings.window_s
        self._bucket_bytes = settings.memory_bytes // BUCKETS
        self._watch = watch

    async def record(self, answer: AnswerRecord) -> RecordedAnswer:
        """Store an answer; see `OutcomeStore.record`."""
        arguments: list[str | int | bytes] = [
            *(answer.encode(), answer.owner, answer.time, self._window_s),
            *(_MOST_OF_OWNER, self._bucket_bytes, _COST_BYTES),
        ]
        with translated("record", OutcomesUnavailable, self._watch):
            earlier, *dropped = await self._pipeline.run(RECORD, self._keys(answer.owner), arguments, list)
        return RecordedAnswer(int(earlier), [int(seconds) for seconds in dropped])

    async def attribute(self, outcome: ItemOutcome) -> AnsweredItem | Literal["duplicate"] | None:
        """Note an outcome; see `OutcomeStore.attribute`."""
        request = b"" if outcome.request_id is None else request_fingerprint(outcome.request_id)
        bit, item = MARK_OF[outcome.outcome], item_fingerprint(outcome.item_id)
        arguments: list[str | int | bytes] = [int(time()), self._window_s, bit, item, request, outcome.owner]
        with translated("attribute", OutcomesUnavailable, self._watch):
            found = await self._pipeline.run(ATTRIBUTE, self._keys(outcome.owner)[:1], arguments, bytes)
        if found == b"d":
            return DUPLICATE
        return _shown(found) if found else None

    async def forget(self, owner: str) -> None:
        """Delete the answers of an owner; see `OutcomeStore.forget`."""
        with translated("forget", OutcomesUnavailable, self._watch):
            await self._pipeline.run(FORGET, self._keys(owner), [owner], int)

    async def add(self, batch: CountBatch) -> None:
        """Add to counts; see `OutcomeStore.add`."""
        names = list(dict.fromkeys(name for name, _ in batch.amounts))
        places = {name: place for place, name in enumerate(names, 2)}
        increments = [part for (name, field), amount in batch.amounts.items() for part in (places[name], field, amount)]
        arguments = [batch.writer, batch.number, _BATCHES_KEPT_S, len(batch.amounts), *increments]
        keys = [self._counts_key(name) for name in ("batches", *names)]
        with translated("count", OutcomesUnavailable, self._watch):
            await self._pipeline.run(ADD, keys, [*arguments, *(KEPT_S for _ in names)], int)

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

    def _keys(self, owner: str) -> list[str]:
        bucket = f"{self._prefix}:{{b{bucket_of(owner):03d}}}"
        return [f"{bucket}:answers", f"{bucket}:answers_order", f"{bucket}:answers_size"]

    def _counts_key(self, name: str) -> str:
        return f"{self._prefix}:{{outcomes}}:{name}"


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
    return {field.decode("utf-8", "replace"): int(value) for field, value in pairs if value.lstrip(b"-").isdigit()}
