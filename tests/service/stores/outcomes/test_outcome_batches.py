"""Answers and outcomes that share a call of Redis: what it costs, and that it does what single calls do."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from time import time
from typing import Any

import pytest
import redis

from service.errors import OutcomesUnavailable
from service.stores.outcomes import answer_records, redis_outcomes
from service.stores.outcomes.outcome_store import AnsweredItem, CountBatch, ItemOutcome, RecordedAnswer
from tests.service.outcomes.test_outcomes import MemoryOutcomes
from tests.service.stores.outcomes.test_outcome_store import (
    CONTEXT,
    ITEMS,
    answer,
    clicked,
    interleaved,
    opened,
    owners_of_one_bucket,
    prefix,
)

__all__ = ["prefix"]


def calls(url: str) -> dict[str, int]:
    """How often Redis ran each command since its start."""
    with redis.Redis.from_url(url) as client:
        return {name.removeprefix("cmdstat_"): found["calls"] for name, found in client.info("commandstats").items()}


async def cost(url: str, work: Callable[[], Any]) -> dict[str, int]:
    before = calls(url)
    await work()
    return {name: count - before.get(name, 0) for name, count in calls(url).items() if name != "info"}


def test_answers_and_the_events_of_a_bulk_take_one_call_each(redis_url: str, prefix: str) -> None:
    """85 events of 50 users; inside the script each owner is read once, and written only if an event belongs to it."""
    users = [f"user-{number}" for number in range(50)]

    async def check() -> None:
        async with opened(redis_url, prefix) as outcomes:
            await outcomes.record([answer("warm")])
            await outcomes.attribute([clicked(ITEMS[0], user="warm")])
            answers = [answer(user, f"r-{user}", context=replace(CONTEXT, arm="")) for user in users[:20]]
            found = await cost(redis_url, lambda: outcomes.record(answers))
            assert (found["evalsha"], found["hset"], found["rpush"]) == (1, 20, 20)
            assert found["expire"] <= 60
            bulk = [clicked(ITEMS[number % 7], user=users[number % 50]) for number in range(85)]
            found = await cost(redis_url, lambda: outcomes.attribute(bulk))
            assert (found["evalsha"], found["hget"], found["hset"]) == (1, 50, 20)
            assert found["expire"] == 0

    asyncio.run(check())


def test_nothing_is_asked_about_nothing(redis_url: str, prefix: str) -> None:
    async def check() -> None:
        async with opened(redis_url, prefix) as outcomes:
            assert await outcomes.record([]) == await outcomes.attribute([]) == []

    asyncio.run(check())


async def in_parts(entries: list[Any], rng: random.Random, call: Callable[[list[Any]], Any]) -> list[Any]:
    """The results of calls with one to twelve entries."""
    found: list[Any] = []
    while len(found) < len(entries):
        found += await call(entries[len(found) : len(found) + rng.randint(1, 12)])
    return found


def test_calls_of_any_size_do_what_single_ones_do(redis_url: str, prefix: str) -> None:
    """Compared with a store in this process that takes one at a time: places, credit, duplicates, dropped answers."""
    rng, start = random.Random(20), int(time()) - 400
    owners = [*owners_of_one_bucket(3), "anna", "bob"]
    answers = []
    for number in range(150):
        made = (answer, interleaved)[number % 2](request=f"r{number}", offset=rng.choice([0, 20]))
        size = rng.randint(1, 20)
        changes: dict[str, Any] = {"item_ids": rng.sample(ITEMS, size), "slots": ["text"] * size}
        if made.second is not None:
            changes["second"] = replace(made.second, gave=made.second.gave[:size])
        answers.append(replace(made, owner=rng.choice(owners), time=start + number, **changes))
    outcomes = [
        ItemOutcome(
            rng.choice(owners),
            rng.choice(ITEMS),
            rng.choice(["impression", "click", "conversion"]),
            rng.choice([None, f"r{rng.randrange(150)}"]),
            start + rng.randrange(-80, 400) + rng.random(),
        )
        for _ in range(1200)
    ]

    async def check() -> tuple[list[Any], list[Any]]:
        async with opened(redis_url, prefix) as store:
            stored = await in_parts(answers, rng, store.record)
            return stored, await in_parts(outcomes, rng, store.attribute)

    stored, found = asyncio.run(check())
    reference = MemoryOutcomes()
    expected = asyncio.run(reference.record(answers))
    assert [one.earlier for one in stored] == [one.earlier for one in expected]  # type: ignore[union-attr]
    assert [list(one.dropped) for one in stored] == [one.dropped for one in expected]  # type: ignore[union-attr]
    assert [one.is_first for one in stored] == [one.is_first for one in expected]  # type: ignore[union-attr]
    wanted = asyncio.run(reference.attribute(outcomes))
    assert found == wanted
    assert {type(one) for one in found} == {AnsweredItem, str, type(None)}


def test_an_item_whose_fingerprint_begins_within_another_one_is_not_found(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fingerprints are searched for as text: a match that begins in the middle of one is none."""
    made = {"x1": b"abc", "x2": b"dab", "x3": b"cde", "other": b"bcd"}
    monkeypatch.setattr(answer_records, "_fingerprints", lambda items: b"".join(made[item] for item in items))
    numbers = {item: int.from_bytes(made[item]) for item in made}
    monkeypatch.setattr(redis_outcomes, "item_numbers", lambda items: [numbers[item] for item in items])

    async def check() -> None:
        async with opened(redis_url, prefix) as store:
            await store.record([answer(item_ids=["x1", "x2", "x3"], slots=["text"] * 3)])
            found = await store.attribute([clicked(item) for item in made])
            assert [one.position if isinstance(one, AnsweredItem) else one for one in found] == [1, 2, 3, None]

    asyncio.run(check())


def test_answers_of_one_call_that_are_too_many_for_the_memory_are_reported_once(redis_url: str, prefix: str) -> None:
    owners = owners_of_one_bucket(120)

    async def check() -> None:
        async with opened(redis_url, prefix, outcomes_memory_mb=1) as store:  # 16 KiB in each bucket
            now = answer().time - 9000
            records = [answer(owner, time=now + number, context=CONTEXT) for number, owner in enumerate(owners)]
            stored = [*await store.record(records[:50]), *await store.record(records[50:])]
            dropped = [seconds for one in stored if isinstance(one, RecordedAnswer) for seconds in one.dropped]
            assert dropped == [now + number for number in range(len(dropped))]
            there = [
                isinstance(one, AnsweredItem)
                for one in await store.attribute([clicked(ITEMS[0], user=owner) for owner in owners])
            ]
            assert there == [False] * len(dropped) + [True] * (120 - len(dropped))
            assert 30 < len(dropped) < 90

    asyncio.run(check())
    with redis.Redis.from_url(redis_url) as client:
        (size,) = client.scan_iter(f"{prefix}:*answers_size")
        assert 0 < int(client.hget(size, "bytes")) <= (1 << 20) // 64  # type: ignore[arg-type]


def test_counts_of_a_batch_that_fails_in_the_middle_are_taken_back(redis_url: str, prefix: str) -> None:
    """It is sent again every second, and had counted the same again each time."""
    wrong, amounts = f"{prefix}:{{outcomes}}:2:slot", {"image|clicks": 3, "text|clicks": -1, "none|clicks": 1}
    before = CountBatch("w", 1, {("1:slot", "image|clicks"): 2, ("1:slot", "text|clicks"): 2})
    batch = CountBatch("w", 2, {("1:slot", field): amount for field, amount in amounts.items()} | {("2:slot", "a"): 1})

    async def check() -> None:
        async with opened(redis_url, prefix) as outcomes:
            await outcomes.add(before)
            with redis.Redis.from_url(redis_url) as client:
                client.rpush(wrong, "of another program")
                for _ in range(3):
                    with pytest.raises(OutcomesUnavailable):
                        await outcomes.add(batch)
                    assert await outcomes.counts(["1:slot"]) == [{"image|clicks": 2, "text|clicks": 2}]
                client.delete(wrong)
            for _ in range(2):
                await outcomes.add(batch)
            assert await outcomes.counts(["1:slot", "2:slot"]) == [
                {"image|clicks": 5, "text|clicks": 1, "none|clicks": 1},
                {"a": 1},
            ]

    asyncio.run(check())


@pytest.mark.parametrize("stored", [2**63 - 10, "of another program"])
def test_a_count_that_cannot_grow_stops_no_other_one(redis_url: str, prefix: str, stored: int | str) -> None:
    key = f"{prefix}:{{outcomes}}:1:arm"

    async def check() -> None:
        async with opened(redis_url, prefix) as outcomes:
            with redis.Redis.from_url(redis_url, decode_responses=True) as client:
                client.hset(key, "a|revenue", stored)
                for number in (1, 2):
                    amounts = {("1:slot", "text|clicks"): 1, ("1:arm", "a|revenue"): 100, ("1:arm", "b|clicks"): 1}
                    await outcomes.add(CountBatch("w", number, amounts))
                assert client.hgetall(key) == {"a|revenue": str(stored), "b|clicks": "2"}
            assert await outcomes.counts(["1:slot"]) == [{"text|clicks": 2}]

    asyncio.run(check())


def test_refused_increments_are_named_also_to_a_batch_that_is_sent_again(redis_url: str, prefix: str) -> None:
    amounts = {("1:slot", "text|shown"): 2, ("1:slot", "full|shown"): 1, ("2:slot", "foreign|shown"): 3}

    async def check() -> None:
        async with opened(redis_url, prefix) as outcomes:
            assert await outcomes.add(CountBatch("w", 1, {("1:slot", "full|shown"): 2**63 - 1})) == set()
            with redis.Redis.from_url(redis_url) as client:
                client.hset(f"{prefix}:{{outcomes}}:2:slot", "foreign|shown", "no number")
            for _ in range(2):
                assert await outcomes.add(CountBatch("w", 2, amounts)) == {*list(amounts)[1:]}
            assert await outcomes.counts(["1:slot"]) == [{"text|shown": 2, "full|shown": 2**63 - 1}]
            assert await outcomes.add(CountBatch("w", 3, {("1:slot", "text|shown"): 1})) == set()

    asyncio.run(check())
