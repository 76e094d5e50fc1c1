"""Redis evicts a key of a bucket of answers, as a policy of `volatile-ttl` does in a Redis that is nearly full."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator
from itertools import count, islice
from time import time

import pytest
import redis

from service.settings.groups import OutcomeSettings
from service.stores.history_keys import bucket_of
from service.stores.outcomes.answer_records import AnswerContext, AnswerRecord
from service.stores.outcomes.outcome_store import AnsweredItem, ItemOutcome, RecordedAnswer
from service.stores.outcomes.redis_outcomes import RedisOutcomes
from tests.support.stores.real_redis import connection

CONTEXT = AnswerContext("20261122T231500Z-4f3a9c", "sequence", "pictures/more")
ITEMS = [f"item-{number:05d}" for number in range(20)]
BUCKET = 17
BYTES = 1_000_000 // 64  # of a bucket at least, with outcomes_memory_mb=1

Check = Callable[[RedisOutcomes], Awaitable[None]]


class Bucket:
    """The keys of a bucket of answers, below a prefix of its own."""

    def __init__(self, url: str) -> None:
        self.url, self.prefix, self.client = url, uuid.uuid4().hex[:7], redis.Redis.from_url(url)

    def key(self, kind: str) -> str:
        return f"{self.prefix}:{{b{BUCKET:03d}}}:{kind}"

    def run(self, check: Check) -> None:
        async def whole() -> None:
            settings = OutcomeSettings(outcomes_memory_mb=1)
            store = RedisOutcomes(connection(self.url, prefix=self.prefix, timeout_s=5.0), settings)
            try:
                await check(store)
            finally:
                await store.close()

        asyncio.run(whole())

    def assert_sound(self) -> None:
        """Every answer has an entry of the order, the costs of the entries are the bytes, and all keys expire."""
        order = self.client.lrange(self.key("answers_order"), 0, -1)
        assert {entry[6:] for entry in order} >= set(self.client.hkeys(self.key("answers")))
        size = int(self.client.hget(self.key("answers_size"), "bytes") or 0)
        assert size == sum(int.from_bytes(entry[4:6]) for entry in order)
        assert size <= BYTES + 1000
        assert all(self.client.ttl(key) > 0 for key in self.client.scan_iter(f"{self.prefix}:*", count=10_000))


@pytest.fixture
def bucket(redis_url: str) -> Iterator[Bucket]:
    found = Bucket(redis_url)
    yield found
    found.client.delete("none", *found.client.scan_iter(f"{found.prefix}:*", count=10_000))
    found.client.close()


def users(first: int, most: int) -> list[str]:
    """Names of users of the bucket."""
    return list(islice((name for n in count(first) if bucket_of(name := f"user-{n:06d}") == BUCKET), most))


async def answer(store: RedisOutcomes, names: list[str]) -> list[int]:
    """Answer users one after the other; the times of the answers that were dropped before their window ended."""
    dropped: list[int] = []
    for name in names:
        record = AnswerRecord(name, int(time()), "r1", 0, ITEMS, ["image"] * 20, CONTEXT)
        (found,) = await store.record([record])
        assert isinstance(found, RecordedAnswer)
        dropped += found.dropped
    return dropped


@pytest.mark.parametrize("evicted", ["answers", "answers_order", "answers_size"])
def test_what_is_left_of_a_bucket_stays_bounded(bucket: Bucket, evicted: str) -> None:
    async def check(store: RedisOutcomes) -> None:
        assert await answer(store, users(0, 40)) == []
        assert bucket.client.delete(bucket.key(evicted))
        dropped = await answer(store, users(10_000, 10))
        assert len(dropped) == (40 if evicted == "answers_order" else 0), "of these no event is counted any more"
        bucket.assert_sound()
        later = users(20_000, 100)
        await answer(store, later)
        bucket.assert_sound()
        (click,) = await store.attribute([ItemOutcome(later[-1], ITEMS[3], "click")])
        assert isinstance(click, AnsweredItem)

    bucket.run(check)


def test_an_erasure_brings_no_negative_size_back(bucket: Bucket) -> None:
    async def check(store: RedisOutcomes) -> None:
        names = users(0, 5)
        await answer(store, names)
        bucket.client.delete(bucket.key("answers_size"))
        await store.forget(names[0])
        await answer(store, users(10_000, 1))
        bucket.assert_sound()

    bucket.run(check)
