"""The contract of history stores, tested on the fake in memory, a real Redis and a real cluster."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from unittest.mock import AsyncMock

import pytest
import redis

from service.errors import HistoriesUnavailable, SettingsError
from service.stores.history_keys import BUCKETS, bucket_of, keys_of
from service.stores.history_records import append_call
from service.stores.protocols import Event, HistoryEntry, session_owner
from service.stores.redis_client import RedisWatch
from service.stores.redis_histories import RedisHistories
from service.stores.redis_history_scripts import LATE
from tests.support.stores.item_ids import item_ids
from tests.support.stores.memory_histories import MemoryHistories
from tests.support.stores.real_redis import open_histories

Store = MemoryHistories | RedisHistories
OpenStore = Callable[..., Any]


@pytest.fixture(params=["memory", "redis", "cluster"])
def open_store(request: pytest.FixtureRequest) -> OpenStore:
    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[Store]:
        if request.param == "memory":
            yield MemoryHistories(**options)
            return
        clustered = request.param == "cluster"
        url = request.getfixturevalue("cluster").url if clustered else request.getfixturevalue("redis_url")
        store = open_histories(url, prefix=f"test-{uuid.uuid4().hex}", timeout_s=5.0, **options)
        yield store
        await store.close()

    return opened


def event(user: str, item: str, at: float = 100.0, **more: Any) -> Event:
    return Event(user, item, at, **more)


def test_a_user_never_seen_has_no_history(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            assert await item_ids(store, "nobody") == []
            assert await store.entries("nobody") == []
            await store.erase("nobody")
            assert await store.alive()

    asyncio.run(check())


def test_history_is_by_arrival_and_within_one_call_by_timestamp(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            assert (
                len(await store.append([event("u", "late", 30), event("u", "early", 10), event("u", "middle", 20)]))
                == 3
            )
            assert len(await store.append([event("u", "older but came later", 5)])) == 1
            assert await item_ids(store, "u") == ["early", "middle", "late", "older but came later"]

    asyncio.run(check())


def test_equal_timestamps_keep_the_order_of_the_call(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            await store.append([event("u", name, 7) for name in "bca"])
            assert await item_ids(store, "u") == ["b", "c", "a"]

    asyncio.run(check())


def test_entries_carry_what_was_sent(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            await store.append(
                [event("u", "a", 1.5, type="purchase"), event("u", "b", 1_790_000_000.123), event("u", "c", 0)]
            )
            assert await store.entries("u") == [
                HistoryEntry("c", 0.0, None),
                HistoryEntry("a", 1.5, "purchase"),
                HistoryEntry("b", 1_790_000_000.123, None),
            ]

    asyncio.run(check())


def test_users_are_kept_apart_even_with_odd_ids(open_store: OpenStore) -> None:
    users = ["a", "A", "a}", "a%7D", "{a}", "}", "ü", "a:history", "👍" * 64, " "]

    async def check() -> None:
        async with open_store() as store:
            await store.append([event(user, f"item of {user}") for user in users])
            for user in users:
                assert await item_ids(store, user) == [f"item of {user}"]

    asyncio.run(check())


def test_only_the_newest_events_of_a_user_are_kept(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store(history_cap=3) as store:
            await store.append([event("u", str(number), number) for number in range(5)])
            assert await item_ids(store, "u") == ["2", "3", "4"]
            await store.append([event("u", "5")])
            assert await item_ids(store, "u") == ["3", "4", "5"]

    asyncio.run(check())


def test_an_event_id_is_stored_once_a_user(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            once = event("u", "a", event_id="e1")
            assert len(await store.append([once])) == 1
            assert len(await store.append([once])) == 0
            assert list(await store.append([event("u", "b", event_id="e2"), event("u", "b", event_id="e2"), once])) == [
                0
            ]
            assert len(await store.append([event("someone else", "a", event_id="e1")])) == 1
            assert await item_ids(store, "u") == ["a", "b"]
            assert [kept.item_id for kept in await store.stream()] == ["a", "b", "a"]

    asyncio.run(check())


def test_it_is_known_which_events_of_a_call_are_new(open_store: OpenStore) -> None:
    """By their positions in the call, whatever the order of their times."""

    async def check() -> None:
        async with open_store() as store:
            known = [event(user, "a", event_id="e") for user in ("u", "v")]
            assert list(await store.append(known)) == [0, 1]
            bulk = [event("u", "b", 30, event_id="f"), known[1], event("w", "c", 20), known[0], event("v", "d", 10)]
            assert list(await store.append(bulk)) == [0, 2, 4]
            assert list(await store.append(bulk)) == [2, 4]
            assert list(await store.append(known)) == []

    asyncio.run(check())


def test_events_without_an_id_are_always_stored(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            assert len(await store.append([event("u", "a"), event("u", "a")])) == 2
            assert await item_ids(store, "u") == ["a", "a"]

    asyncio.run(check())


def test_only_the_newest_event_ids_are_remembered(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store(event_ids_cap=2) as store:
            for number in range(3):
                await store.append([event("u", str(number), event_id=str(number))])
            assert len(await store.append([event("u", "2", event_id="2")])) == 0
            assert len(await store.append([event("u", "0", event_id="0")])) == 1

    asyncio.run(check())


def test_of_the_event_ids_of_one_call_the_last_are_the_newest(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store(event_ids_cap=2) as store:
            await store.append([event("u", str(number), event_id=f"e{number}") for number in range(8, 13)])
            again = [event("u", "again", event_id=f"e{number}") for number in (11, 12, 9)]
            assert await store.append(again) == [2]

    asyncio.run(check())


def test_texts_are_stored_as_they_were_sent(open_store: OpenStore) -> None:
    odd = '"\\/\\u0041{}[],:%s%d \u2028\u00e9\U0001f600\ufeff'

    async def check() -> None:
        async with open_store() as store:
            sent = Event(odd, odd, 100.125, odd, odd, odd, odd, value=0.0, arm=odd)
            assert len(await store.append([sent, event("u", "a")])) == 2
            assert len(await store.append([sent])) == 0
            assert await store.entries(odd) == [HistoryEntry(odd, 100.125, odd)]
            assert sent in await store.stream()

    asyncio.run(check())


def test_histories_expire(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store(ttl_s=1) as store:
            assert len(await store.append([event("u", "a", event_id="e")])) == 1
            await asyncio.sleep(1.1)
            assert await item_ids(store, "u") == []
            assert len(await store.append([event("u", "a", event_id="e")])) == 1

    asyncio.run(check())


def test_the_stream_keeps_whole_events_up_to_its_cap(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store(stream_cap=BUCKETS) as store:
            whole = event("v", "c", 3.25, type="view", event_id="e", request_id="r")
            await store.append([event("u", "a", 1), event("u", "b", 2), whole])
            assert await store.stream() == [event("u", "b", 2), whole]  # u and v are of two buckets

    asyncio.run(check())


def test_the_bucket_of_a_user_with_many_events_drops_its_oldest_and_no_other_does(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store(stream_cap=3 * BUCKETS) as store:
            await store.append([event("other", "a"), event("neighbour", "b")])
            assert bucket_of("neighbour") != bucket_of("other")
            for number in range(5):
                await store.append([event("other", str(number))])
            kept = [(entry.user_id, entry.item_id) for entry in await store.stream()]
            assert kept == [("neighbour", "b"), ("other", "2"), ("other", "3"), ("other", "4")]

    asyncio.run(check())


def test_erasing_forgets_one_user_everywhere(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            mixed = [event("u" if number % 2 else "v", str(number), number) for number in range(2500)]
            for start in range(0, 2500, 500):
                await store.append(mixed[start : start + 500])
            await store.append([event("u", "x", event_id="e")])
            await store.erase("u")
            assert await item_ids(store, "u") == []
            assert {kept.user_id for kept in await store.stream()} == {"v"}
            assert len(await store.stream()) == 1250
            assert len(await item_ids(store, "v")) == 200
            assert len(await store.append([event("u", "x", event_id="e")])) == 1

    asyncio.run(check())


def test_concurrent_appends_lose_nothing(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            calls = [
                store.append([event("u", f"{call}.{number}", number) for number in range(5)]) for call in range(20)
            ]
            assert sum(map(len, await asyncio.gather(*calls))) == 100
            history = await item_ids(store, "u")
            assert sorted(history) == sorted(f"{call}.{number}" for call in range(20) for number in range(5))
            for call in range(20):  # calls are atomic: nobody's events lie between those of one call
                at = history.index(f"{call}.0")
                assert history[at : at + 5] == [f"{call}.{number}" for number in range(5)]

    asyncio.run(check())


def test_a_store_that_is_down_says_so_in_one_way() -> None:
    errors: list[str] = []
    memory = MemoryHistories()
    memory.available = False
    gone = open_histories("unix:///nonexistent/redis.sock", watch=RedisWatch(on_error=errors.append))

    async def check(store: Store) -> None:
        reads = (item_ids(store, "u"), store.entries("u"), store.impressions("u"))
        for call in (store.append([event("u", "a")]), *reads, store.merge("s", "u"), store.erase("u")):
            with pytest.raises(HistoriesUnavailable):
                await call
        assert await store.alive() is False

    asyncio.run(check(memory))
    asyncio.run(check(gone))
    assert errors == ["append", "recent", "recent", "recent", "merge", "erase", "ping"]


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="must be a redis://"):
        open_histories("http://localhost")


def test_redis_keys_of_a_user_share_a_slot_and_expire_but_the_stream_does_not(redis_url: str) -> None:
    prefix = f"test-{uuid.uuid4().hex}"

    async def check() -> None:
        store = open_histories(redis_url, prefix=prefix, ttl_s=1000)
        await store.append([event("u}v", "a", event_id="e")])
        await store.close()

    asyncio.run(check())
    with redis.Redis.from_url(redis_url) as client:
        keys = {key.decode(): client.ttl(key) for key in client.keys(f"{prefix}*")}
        assert keys == {
            f"{prefix}:{{b027}}:history:u}}v": 1000,
            f"{prefix}:{{b027}}:event_ids:u}}v": 1000,
            f"{prefix}:{{b027}}:stream_ids:u}}v": -1,
            f"{prefix}:{{b027}}:stream": -1,
        }


def test_what_others_wrote_into_a_key_is_no_crash(redis_url: str) -> None:
    prefix = f"test-{uuid.uuid4().hex}"

    async def check() -> None:
        store = open_histories(redis_url, prefix=prefix)
        assert await store.entries("u") == [HistoryEntry("�", 0.0, None), HistoryEntry("b", 0.0, None)]
        assert await item_ids(store, "v") == ["a\x1eb", "\x1e", "c"]
        with pytest.raises(HistoriesUnavailable):
            await item_ids(store, "w")
        await store.close()

    with redis.Redis.from_url(redis_url) as client:
        client.rpush(keys_of(prefix, "u").history, b"\xff", b"b\x1fno number\x1f")
        client.rpush(keys_of(prefix, "v").history, b"a\x1eb", b"\x1e", b"c\x1f1\x1f")
        client.set(keys_of(prefix, "w").history, "not a list")
        asyncio.run(check())


def test_a_bulk_is_one_argument_and_has_no_keys_that_it_does_not_need() -> None:
    events = [event(f"u{number}", "a", type="view") for number in range(100)]
    shown = [event("u7", "b", stored_in="impressions"), event("u7", "c", stored_in="impressions")]
    single, bulk = (append_call("p", "p:events", sent) for sent in (events[:1], [*events, *shown]))
    assert len(single.arguments) == len(bulk.arguments)
    assert single.keys == ["p:events", *keys_of("p", "u0")[:4]]
    assert len(bulk.keys) == 1 + 4 * 100 + 1
    assert bulk.keys[-1] == keys_of("p", "u7").impressions


def test_value_and_arm_are_in_the_stream(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            sold = Event("u", "i", 1.0, "purchase", "e1", "r1", value=19.99, arm="prices/low")
            await store.append([sold, Event("u", "j", 2.0), Event("u", "k", 3.0, value=0.0)])
            assert await store.stream() == [sold, Event("u", "j", 2.0), Event("u", "k", 3.0, value=0.0)]

    asyncio.run(check())


@pytest.mark.parametrize("seed", range(2))
def test_one_event_has_the_effects_that_it_has_among_others(redis_url: str, seed: int) -> None:
    """The script of one event and that of a bulk store the same: in order, at the caps, of sessions, after failures."""
    rng, prefixes = random.Random(seed), [f"test-{uuid.uuid4().hex}" for _ in range(2)]
    caps = {"history_cap": 4, "impressions_cap": 3, "event_ids_cap": 16, "stream_cap": 6 * BUCKETS, "ttl_s": 500}

    async def check(client: "redis.Redis[str]") -> None:
        single, as_bulk = (open_histories(redis_url, prefix=prefix, timeout_s=5.0, **caps) for prefix in prefixes)
        as_bulk._append_one = AsyncMock(return_value=LATE)  # type: ignore[method-assign]
        refused = 0
        for number in range(200):
            user, at = rng.choice(["u", "v", session_owner("s")]), time.time() + rng.choice([-9e6, -60, -30, 0, 60])
            wrong = rng.choice([*keys_of("", user)[:5], *[None] * 20])
            event_id = rng.choice([None, str(rng.randrange(60))])
            more = {"session_id": rng.choice([None, "s"]), "value": rng.choice([None, 1.5])}
            kind = rng.choice(["history", "history", "impressions", "stream"])
            sent = Event(user, f"i{number}", at, rng.choice([None, "view"]), event_id, stored_in=kind, **more)
            with replaced(client, [] if wrong is None else [prefix + wrong for prefix in prefixes]):
                found = [await outcome(store, sent) for store in (single, as_bulk)]
            assert found[0] == found[1]
            assert contents(client, prefixes[0]) == contents(client, prefixes[1])
            refused += found[0] is None
        assert refused > 5
        await asyncio.gather(single.close(), as_bulk.close())

    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        asyncio.run(check(client))


@contextmanager
def replaced(client: "redis.Redis[str]", keys: list[str]) -> Iterator[None]:
    """Keys of another type than the store's, meanwhile."""
    kept = [key for key in keys if client.exists(key) and client.rename(key, f"{key}-kept")]
    for key in keys:
        client.set(key, "a string")
    yield
    client.delete(*keys or ["none"])
    for key in kept:
        client.rename(f"{key}-kept", key)


async def outcome(store: RedisHistories, sent: Event) -> list[int] | None:
    """Positions of the new events; None: the store refused them."""
    try:
        return list(await store.append([sent]))
    except HistoriesUnavailable:
        return None


def contents(client: "redis.Redis[str]", prefix: str) -> dict[str, Any]:
    """What is stored, without what the clock decides."""
    read: dict[str, Callable[[str], Any]] = {
        "list": lambda key: client.llen(key) if "stream_ids" in key else client.lrange(key, 0, -1),
        "zset": lambda key: client.zrange(key, 0, -1),
        "stream": lambda key: [fields for _, fields in client.xrange(key)],
    }
    keys = client.keys(f"{prefix}:*")
    return {key.removeprefix(prefix): (read[client.type(key)](key), round(client.ttl(key) / 100)) for key in keys}
