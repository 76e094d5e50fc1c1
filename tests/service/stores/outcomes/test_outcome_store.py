"""Answers in a real Redis: what a record holds and costs, which answer an event belongs to, and what is dropped."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from time import time
from typing import Any

import pytest
import redis

from service.errors import OutcomesUnavailable
from service.settings.groups import OutcomeSettings
from service.stores.history_keys import bucket_of
from service.stores.outcomes.answer_records import AnswerContext, AnswerRecord, SecondArm, owner_of
from service.stores.outcomes.outcome_store import (
    DUPLICATE,
    AnsweredItem,
    Attribution,
    CountBatch,
    InterleavedCredit,
    ItemOutcome,
    RecordedAnswer,
)
from service.stores.outcomes.redis_outcomes import _USER_BYTES, KEPT_S, RedisOutcomes
from tests.support.stores.real_redis import connection

CONTEXT = AnswerContext("20261122T231500Z-4f3a9c", "sequence", "pictures/more")
ITEMS = [f"item-{number:05d}" for number in range(20)]
BYTES = 300


def answer(user: str | None = "anna", request: str = "r1", **changes: Any) -> AnswerRecord:
    record = AnswerRecord(owner_of(user, request), int(time()), request, 0, ITEMS, ["image"] * 20, CONTEXT)
    return replace(record, **changes)


@pytest.fixture
def prefix(redis_url: str) -> Iterator[str]:
    name = uuid.uuid4().hex[:7]  # as long as the default
    yield name
    with redis.Redis.from_url(redis_url) as client:
        client.delete("none", *client.scan_iter(f"{name}:*", count=10_000))


@asynccontextmanager
async def opened(url: str, prefix: str, **settings: Any) -> AsyncIterator[RedisOutcomes]:
    store = RedisOutcomes(connection(url, prefix=prefix, timeout_s=5.0), OutcomeSettings(**settings))
    try:
        yield store
    finally:
        await store.close()


async def recorded(outcomes: RedisOutcomes, stored: AnswerRecord) -> RecordedAnswer:
    (found,) = await outcomes.record([stored])
    assert isinstance(found, RecordedAnswer)
    return found


async def attributed(outcomes: RedisOutcomes, one: ItemOutcome) -> Attribution:
    (found,) = await outcomes.attribute([one])
    return found


def clicked(item: str, request: str | None = None, user: str | None = "anna") -> ItemOutcome:
    return ItemOutcome(owner_of(user, request or ""), item, "click", request)


@pytest.mark.parametrize("arm", ["", "pictures/more", "größe/klein"])
def test_a_context_is_read_as_it_was_written(arm: str) -> None:
    for strategy in ("sequence", "similar", "popular"):
        context = AnswerContext("20261122T231500Z-4f3a9c", strategy, arm)
        assert AnswerContext.decode(context.encode()) == context
    assert AnswerContext.decode(AnswerContext("20261122T231500Z-4f3a9c", "new one").encode()).strategy == "other"
    with pytest.raises(ValueError, match="bundle must be an id like"):
        AnswerContext("no bundle", "popular").encode()


def test_a_record_is_byte_for_byte_that_of_earlier_versions() -> None:
    """Replicas of two versions read the records of each other."""
    context = AnswerContext("20261122T231500Z-4f3a9c", "similar", "größe/klein")
    items, slots = ["lamp", "größe", "c"], ["text", "none", "mine"]
    assert AnswerRecord("anna", 1764000000, "r1", 20, items, slots, context).encode().hex() == (
        "003169248100491f37c8258b00140315016b0377744f3a9c6772c3b6c39f652f6b6c65696ef75266d3a989b9df6f080020"
    )


def test_twenty_items_take_at_most_300_bytes(redis_url: str, prefix: str) -> None:
    users = 2000

    async def store() -> None:
        async with opened(redis_url, prefix) as outcomes:
            for first in range(0, users, 500):
                names = [f"user-{number:05d}" for number in range(first, first + 500)]
                stored = await asyncio.gather(*(recorded(outcomes, answer(name)) for name in names))
                assert not any(found.earlier for found in stored)

    assert len(answer().encode()) == 16 + 8 + len(CONTEXT.arm) + 80
    with redis.Redis.from_url(redis_url) as client:
        asyncio.run(store())
        keys = list(client.scan_iter(f"{prefix}:*", count=10_000))
        taken = sum(client.memory_usage(key, samples=0) for key in keys)
        assert taken / users <= BYTES
        counted = sum(int(client.hget(key, "bytes")) for key in keys if key.endswith(b"answers_size"))
        assert 0.9 <= counted / taken <= 1.3


def test_an_event_belongs_to_the_answer_it_names_or_to_the_newest_with_its_item(redis_url: str, prefix: str) -> None:
    async def check() -> None:
        async with opened(redis_url, prefix) as outcomes:
            await recorded(outcomes, answer(request="r1", offset=20))
            assert await recorded(
                outcomes, answer(request="r2", item_ids=ITEMS[:3], slots=["text", "none", "other"])
            ) == (RecordedAnswer(1, []))
            found = await attributed(outcomes, clicked(ITEMS[2]))
            assert isinstance(found, AnsweredItem)
            assert (found.position, found.slot, found.context) == (3, "other", CONTEXT)
            assert await attributed(outcomes, clicked(ITEMS[2])) == DUPLICATE
            assert await attributed(outcomes, clicked(ITEMS[2], "r2")) == DUPLICATE
            bought = ItemOutcome("anna", ITEMS[2], "conversion")
            assert isinstance(await attributed(outcomes, bought), AnsweredItem)
            earlier = await attributed(outcomes, clicked(ITEMS[2], "r1"))
            assert isinstance(earlier, AnsweredItem)
            assert (earlier.position, earlier.slot) == (23, "image")
            for nothing in (clicked("never shown"), clicked(ITEMS[0], "r3"), clicked(ITEMS[5], "r2")):
                assert await attributed(outcomes, nothing) is None

    asyncio.run(check())


@pytest.mark.parametrize(
    ("ago", "position"), [(0, 3), (40, 3), (200, 12), (3000, 12), (4000, None), (30 * 86_400, None), (1e12, None)]
)
def test_an_event_belongs_to_no_answer_that_was_given_after_it(
    redis_url: str, prefix: str, ago: float, position: int | None
) -> None:
    """Clocks of clients may be a minute behind; an event that names its request has seen the answer."""

    async def check() -> None:
        async with opened(redis_url, prefix) as outcomes:
            now = int(time())
            await recorded(outcomes, answer(request="r1", offset=9, time=now - 3000))
            await recorded(outcomes, answer(request="r2", time=now))
            found = await attributed(outcomes, clicked(ITEMS[2])._replace(time=now - ago))
            assert (found.position if isinstance(found, AnsweredItem) else found) == position
            named = clicked(ITEMS[4], "r2")._replace(time=now - ago)
            assert isinstance(await attributed(outcomes, named), AnsweredItem)

    asyncio.run(check())


def interleaved(request: str = "r1", **changes: Any) -> AnswerRecord:
    """Items 1, 3, 5 … are of the second arm, which answers with another bundle."""
    second = AnswerContext("20261123T231500Z-aaaaaa", "popular", "pictures/less")
    return answer(request=request, second=SecondArm(second, [place % 2 == 1 for place in range(20)]), **changes)


def test_an_outcome_of_an_interleaved_answer_belongs_to_the_arm_of_its_item(redis_url: str, prefix: str) -> None:
    """The credit is that of a count by hand, whatever the order, and each outcome has its own."""

    async def check() -> None:
        async with opened(redis_url, prefix) as outcomes:
            await recorded(outcomes, interleaved())
            counted = []
            for place in (0, 1, 1, 3, 5, 2):
                found = await attributed(outcomes, clicked(ITEMS[place], "r1"))
                if found != DUPLICATE:
                    assert isinstance(found, AnsweredItem)
                    assert (found.position, found.slot) == (place + 1, "image")
                    assert found.context == (interleaved().second.context if place % 2 else CONTEXT)
                    assert found.credit is not None
                    counted.append((found.credit.own, found.credit.other, found.credit.other_arm))
            more, less = "pictures/more", "pictures/less"
            assert counted == [(1, 0, less), (1, 1, more), (2, 1, more), (3, 1, more), (2, 3, less)]
            bought = await attributed(outcomes, ItemOutcome("anna", ITEMS[1], "conversion", "r1"))
            assert isinstance(bought, AnsweredItem)
            assert bought.credit == InterleavedCredit(1, 0, more)

    asyncio.run(check())


def test_an_interleaved_answer_takes_few_bytes_more(redis_url: str, prefix: str) -> None:
    assert len(interleaved().encode()) == len(answer().encode()) + 2 + 8 + len("pictures/less")
    short = interleaved(item_ids=ITEMS[:3], slots=["none", "text", "other"])
    assert len(short.encode()) == len(interleaved().encode()) - 17 * 4


def test_answers_that_leave_as_their_owner_has_newer_ones_are_reported(redis_url: str, prefix: str) -> None:
    """Of one owner the newest 20 are kept."""

    async def check() -> None:
        async with opened(redis_url, prefix, outcomes_memory_mb=1, outcomes_window_h=1) as outcomes:
            now = int(time()) - 300
            dropped = []
            for number in range(25):
                dropped += (await recorded(outcomes, answer("anna", f"r{number}", time=now + number))).dropped
            assert dropped == [now + number for number in range(5)]

    asyncio.run(check())


def test_every_answer_of_a_batch_is_kept(redis_url: str, prefix: str) -> None:
    """They are without a user and have one request id, so they have one owner."""

    async def check() -> None:
        async with opened(redis_url, prefix) as outcomes:
            batch = [answer(None, "r1", item_ids=[f"item of {number}"], slots=["text"]) for number in range(256)]
            stored = [*await outcomes.record(batch[:100]), *await outcomes.record(batch[100:])]
            assert [list(one.dropped) for one in stored if isinstance(one, RecordedAnswer)] == [[]] * 256
            found = await outcomes.attribute([clicked(f"item of {number}", "r1", None) for number in range(256)])
            assert all(isinstance(one, AnsweredItem) for one in found)
            assert (await recorded(outcomes, answer(None, "r1"))).dropped == [batch[0].time]

    asyncio.run(check())


def test_answers_that_leave_for_want_of_memory_are_reported_once(redis_url: str, prefix: str) -> None:
    async def check() -> None:
        async with opened(redis_url, prefix, outcomes_memory_mb=1) as outcomes:  # 16 KiB in each bucket
            now, dropped, owners = int(time()) - 9000, [], owners_of_one_bucket(120)
            for number, owner in enumerate(owners):
                dropped += (await recorded(outcomes, answer(owner, time=now + number))).dropped
            assert dropped == [now + number for number in range(len(dropped))]
            there = [
                isinstance(await attributed(outcomes, clicked(ITEMS[0], user=owner)), AnsweredItem) for owner in owners
            ]
            assert there == [False] * len(dropped) + [True] * (120 - len(dropped))
            assert 30 < len(dropped) < 90

    asyncio.run(check())


def owners_of_one_bucket(count: int) -> list[str]:
    names = (f"user-{number:06d}" for number in range(100 * count))
    return [name for name in names if bucket_of(name) == bucket_of("user-000000")][:count]


def test_an_event_of_another_user_belongs_to_no_answer(redis_url: str, prefix: str) -> None:
    async def check() -> None:
        async with opened(redis_url, prefix) as outcomes:
            await recorded(outcomes, answer("anna", "r1"))
            await recorded(outcomes, answer(None, "r2"))
            assert await attributed(outcomes, clicked(ITEMS[0], "r1", "bob")) is None
            assert await attributed(outcomes, clicked(ITEMS[0], None, "bob")) is None
            assert isinstance(await attributed(outcomes, clicked(ITEMS[0], "r2", None)), AnsweredItem)

    asyncio.run(check())


def test_answers_before_the_window_are_not_found_and_all_keys_expire(redis_url: str, prefix: str) -> None:
    async def check() -> None:
        async with opened(redis_url, prefix, outcomes_window_h=1) as outcomes:
            now = int(time())
            await recorded(outcomes, answer(request="r1", time=now - 3700))
            assert await attributed(outcomes, clicked(ITEMS[0], "r1")) is None
            assert await recorded(outcomes, answer(request="r2", time=now)) == RecordedAnswer(0, [])
            assert isinstance(await attributed(outcomes, clicked(ITEMS[0], "r2")), AnsweredItem)

    asyncio.run(check())
    with redis.Redis.from_url(redis_url) as client:
        kept = {key.decode().rpartition(":")[2]: client.ttl(key) for key in client.scan_iter(f"{prefix}:*")}
    assert KEPT_S - 60 <= kept.pop("experiment_users") <= KEPT_S
    assert len(kept) == 3
    assert all(0 < seconds <= 3600 for seconds in kept.values())


def test_a_user_is_counted_once_for_each_experiment(redis_url: str, prefix: str) -> None:
    """Also after the window of the first answer; interleaved answers and those of no arm count nobody."""

    async def check() -> None:
        async with opened(redis_url, prefix, outcomes_window_h=1) as outcomes:

            async def first(arm: str, *users: str | None, ago: int = 0, **more: Any) -> list[bool]:
                context, when = replace(CONTEXT, arm=arm), int(time()) - ago
                asked = [answer(user, uuid.uuid4().hex, context=context, time=when, **more) for user in users]
                return [one.is_first for one in await outcomes.record(asked) if isinstance(one, RecordedAnswer)]

            assert await first("", "anna", ago=9900) == [False]
            assert await first("pictures/more", "anna", ago=9900, second=interleaved().second) == [False]
            assert await first("pictures/more", "anna", "bob", "anna", ago=9000) == [True, True, False]
            assert await first("pictures/more", "bob", None, "anna", None, "carl") == [False, False, False, False, True]
            await outcomes.forget("bob")
            assert await first("pictures/less", "anna", "bob") == [False, True]
            assert await first("prices/low", "anna", "bob") == [True, True]
            assert await first("prices/low", "anna", "bob") == [False, False]

    asyncio.run(check())


def test_as_many_users_of_an_experiment_are_counted_as_there_is_memory_for(redis_url: str, prefix: str) -> None:
    """A tenth of the memory of the answers; the others count in no arm."""
    owners = owners_of_one_bucket(40)

    async def check() -> None:
        async with opened(redis_url, prefix, outcomes_memory_mb=1) as outcomes:  # 16 KiB in each bucket
            for counted in (20, 0):
                stored = await outcomes.record([answer(owner) for owner in owners])
                assert sum(one.is_first for one in stored if isinstance(one, RecordedAnswer)) == counted

    asyncio.run(check())
    with redis.Redis.from_url(redis_url) as client:
        (key,) = client.scan_iter(f"{prefix}:*experiment_users")
        assert client.hlen(key) == 21
        assert (client.memory_usage(key, samples=0) or 0) <= 21 * _USER_BYTES
        assert client.hget(key, "") == b"pictures"


def test_beyond_the_memory_the_oldest_answers_are_dropped(redis_url: str, prefix: str) -> None:
    async def check() -> None:
        async with opened(redis_url, prefix, outcomes_memory_mb=1) as outcomes:  # 16 KiB in each bucket
            now = int(time()) - 300
            for number in range(120):
                await recorded(outcomes, answer(None, "one bucket", request_id=f"r{number}", time=now + number))
                await recorded(outcomes, answer("anna", f"r{number}", time=now + number))
            assert await attributed(outcomes, clicked(ITEMS[0], "r0")) is None
            assert isinstance(await attributed(outcomes, clicked(ITEMS[0], "r119")), AnsweredItem)

    asyncio.run(check())
    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter(f"{prefix}:*answers_size"):
            assert 0 < int(client.hget(key, "bytes")) <= (1 << 20) // 64
        for key in client.scan_iter(f"{prefix}:*answers_order"):
            assert client.llen(key) < 80


def test_an_answer_of_a_clock_that_was_ahead_keeps_no_others_beyond_the_window(redis_url: str, prefix: str) -> None:
    """Its entry of the order is the oldest for weeks; where the clock of this service alone says so, it stays."""
    now, users = int(time()), [name for number in range(600) if bucket_of(name := f"user-{number}") == 17][:4]

    async def kept(outcomes: RedisOutcomes, moment: int, user: str) -> set[str]:
        await recorded(outcomes, answer(user, time=moment))
        return {name.decode() for name in client.hkeys(f"{prefix}:{{b017}}:answers")}

    async def check() -> None:
        async with opened(redis_url, prefix, outcomes_window_h=1) as outcomes:
            assert await kept(outcomes, now + 40 * 86_400, users[0]) == {users[0]}
            assert await kept(outcomes, now - 7200, users[1]) == {users[1]}
            assert await kept(outcomes, now, users[2]) == {users[2]}
            assert await kept(outcomes, now - 40 * 86_400, users[3]) == {users[2], users[3]}

    with redis.Redis.from_url(redis_url) as client:
        asyncio.run(check())


def test_a_user_is_forgotten_with_every_entry(redis_url: str, prefix: str) -> None:
    async def check() -> None:
        async with opened(redis_url, prefix) as outcomes:
            for number in range(30):
                await recorded(outcomes, answer("anna", f"r{number}"))
            await outcomes.forget("anna")
            await outcomes.forget("anna")
            assert await attributed(outcomes, clicked(ITEMS[0])) is None

    asyncio.run(check())
    with redis.Redis.from_url(redis_url) as client:
        keys = [key.decode() for key in client.scan_iter(f"{prefix}:*")]
        assert [key.rpartition(":")[2] for key in keys] == ["answers_size"]
        assert client.hget(keys[0], "bytes") == b"0"


def test_a_batch_of_counts_that_is_sent_twice_counts_once(redis_url: str, prefix: str) -> None:
    async def check() -> None:
        async with opened(redis_url, prefix) as outcomes:
            first = CountBatch("w", 1, {("1:slot", "image|clicks"): 3, ("2:slot", "image|clicks"): 1})
            for batch in (first, first, CountBatch("w", 2, {("1:slot", "image|clicks"): 4}), first):
                if batch is not first or batch.number == 1:
                    await outcomes.add(batch)
            assert await outcomes.counts(["1:slot", "2:slot", "3:slot"]) == [
                {"image|clicks": 10},
                {"image|clicks": 2},
                {},
            ]

    asyncio.run(check())
    with redis.Redis.from_url(redis_url) as client:
        kept = {key: client.ttl(key) for key in client.scan_iter(f"{prefix}:*")}
    assert len(kept) == 3
    assert all(KEPT_S - 60 <= seconds <= KEPT_S for seconds in kept.values())  # also the number of the batch


def test_without_redis_the_error_says_so() -> None:
    async def check() -> None:
        async with opened("redis://127.0.0.1:1", "nobody") as outcomes:
            with pytest.raises(OutcomesUnavailable, match="Redis did not answer"):
                await outcomes.counts(["a"])
            results = [await outcomes.record([answer()]), await outcomes.attribute([clicked("a"), clicked("b")])]
            assert [len(found) for found in results] == [1, 2]
            for error in (result for found in results for result in found):
                assert isinstance(error, OutcomesUnavailable)
                assert "Redis did not answer" in str(error)

    asyncio.run(check())
