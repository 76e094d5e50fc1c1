"""The keys of histories in Redis: reading, moving and erasing the old layout, and the cost of erasing a user."""

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import redis

from service.errors import HistoriesUnavailable
from service.stores.history_keys import (
    BUCKETS,
    bucket_of,
    dropped_at_once,
    keys_of,
    old_keys_of,
    old_stream_key,
    stream_key,
)
from service.stores.protocols import Event
from service.stores.redis_histories import RedisHistories
from tests.support.stores.item_ids import item_ids
from tests.support.stores.real_redis import open_histories

Check = Callable[[RedisHistories], Coroutine[Any, Any, None]]


class Stored:
    """A prefix of its own in a real Redis, as the service and as somebody else sees it."""

    def __init__(self, url: str, admin: "redis.Redis[str]") -> None:
        self.url, self.admin, self.prefix = url, admin, f"test-{uuid.uuid4().hex}"

    def run(self, check: Check, **options: Any) -> None:
        async def all_of_it() -> None:
            store = open_histories(self.url, prefix=self.prefix, timeout_s=10.0, **options)
            try:
                await check(store)
            finally:
                await store.close()

        asyncio.run(all_of_it())

    def store_as_before(self, *events: Event) -> None:
        """As the version before buckets stored them."""
        for event in events:
            of = old_keys_of(self.prefix, event.user_id)
            self.admin.rpush(of.history, f"{event.item_id}\x1f{event.timestamp:g}\x1f{event.type or ''}")
            self.admin.expire(of.history, 500)
            if event.event_id is not None:
                self.admin.zadd(of.event_ids, {event.event_id: event.timestamp})
                self.admin.expire(of.event_ids, 500)
            fields = {"user_id": event.user_id, "item_id": event.item_id, "timestamp": f"{event.timestamp:g}"}
            self.admin.xadd(
                old_stream_key(self.prefix),
                fields | {"type": event.type or "", "event_id": event.event_id or "", "request_id": ""},  # type: ignore[arg-type]
            )

    @property
    def keys(self) -> set[str]:
        return {key.removeprefix(f"{self.prefix}:") for key in self.admin.scan_iter(f"{self.prefix}:*")}

    @property
    def contents(self) -> dict[str, Any]:
        """What every key holds."""
        found: dict[str, Any] = {}
        for key in self.keys:
            whole = f"{self.prefix}:{key}"
            match self.admin.type(whole):
                case "list":
                    found[key] = self.admin.lrange(whole, 0, -1)
                case "zset":
                    found[key] = self.admin.zrange(whole, 0, -1, withscores=True)
                case "stream":
                    found[key] = self.admin.xrange(whole)
        return found

    def ids_match_entries(self) -> bool:
        """Whether every entry of every stream has its id in the list of its user, in order, and no list has another."""
        listed = {
            key: self.admin.lrange(f"{self.prefix}:{key}", 0, -1) for key in self.keys if ":stream_ids:" in f":{key}"
        }
        expected: dict[str, list[str]] = {}
        for bucket in range(BUCKETS):
            for entry_id, fields in self.admin.xrange(stream_key(self.prefix, bucket)):
                of = keys_of(self.prefix, fields["user_id"])
                expected.setdefault(of.stream_ids.removeprefix(f"{self.prefix}:"), []).append(entry_id)
        return listed == expected


@pytest.fixture
def stored(redis_url: str) -> Iterator[Stored]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as admin:
        yield Stored(redis_url, admin)


def test_the_bucket_of_a_user_never_changes() -> None:
    known = {"": 0, "123456789": 0xCBF43926 % 64, "anna": 55, "u": 62, "ü": 21}  # the second: the check value of CRC-32
    assert {user: bucket_of(user) for user in known} == known
    counts = [0] * BUCKETS
    for number in range(6400):
        counts[bucket_of(f"user-{number:06d}")] += 1
    assert min(counts) > 50
    assert max(counts) < 150


def test_users_named_as_buckets_and_keys_disturb_nobody(stored: Stored) -> None:
    users = ["b062", "u", "stream", "b062}:history:u", "history:u", "event_ids:u"]

    async def check(store: RedisHistories) -> None:
        await store.append([Event(user, f"item of {user}", 1.0, event_id="e") for user in users])
        await store.erase("b062")
        assert await item_ids(store, "b062") == []
        for user in users[1:]:
            assert await item_ids(store, user) == [f"item of {user}"]

    stored.store_as_before(*(Event(user, f"old {user}", 1.0, event_id="e") for user in ("b062",)))
    stored.run(check)


def test_what_lies_in_the_old_layout_is_read_and_exported_and_reading_moves_nothing(stored: Stored) -> None:
    stored.store_as_before(Event("u}", "a", 1.5, "view", "e"), Event("u}", "b", 2))
    before = stored.keys

    async def check(store: RedisHistories) -> None:
        assert await item_ids(store, "u}") == ["a", "b"]
        (first, _second) = await store.entries("u}")
        assert (first.item_id, first.timestamp, first.type) == ("a", 1.5, "view")
        assert [event.item_id for event in await store.stream()] == ["a", "b"]
        assert stored.keys == before
        await store.append([Event("v", "c", 3.0)])
        assert [event.item_id for event in await store.stream()] == ["a", "b", "c"]

    stored.run(check)


def test_an_event_moves_what_its_user_has_in_the_old_layout(stored: Stored) -> None:
    stored.store_as_before(
        Event("u", "a", 1, None, "e1"), Event("u", "b", 2, None, "e2"), Event("v", "x", 3, None, "e1")
    )

    async def check(store: RedisHistories) -> None:
        assert len(await store.append([Event("u", "a", 1, None, "e1")])) == 0
        assert await item_ids(store, "u") == ["a", "b"]
        assert stored.admin.ttl(keys_of(stored.prefix, "u").history) in range(1, 501)  # nothing new, so no longer life
        assert len(await store.append([Event("u", "c", 4, None, "e3"), Event("u", "b", 2, None, "e2")])) == 1
        assert await item_ids(store, "u") == ["a", "b", "c"]

    stored.run(check, ttl_s=1000)
    assert stored.keys == {
        "events", "{v}:history", "{v}:events", "{b062}:stream", "{b062}:history:u", "{b062}:event_ids:u",
        "{b062}:stream_ids:u",
    }  # fmt: skip
    assert stored.admin.ttl(keys_of(stored.prefix, "u").history) == 1000


def test_what_an_old_replica_still_stores_is_moved_too(stored: Stored) -> None:
    async def check(store: RedisHistories) -> None:
        await store.append([Event("u", "a", 1, None, "e1")])
        stored.store_as_before(Event("u", "b", 2, None, "e2"))
        assert len(await store.append([Event("u", "b", 2, None, "e2"), Event("u", "c", 3, None, "e3")])) == 1
        assert await item_ids(store, "u") == ["a", "b", "c"]

    stored.run(check)
    assert not {"{u}:history", "{u}:events"} & stored.keys


def test_erasing_takes_the_old_layout_along(stored: Stored) -> None:
    stored.store_as_before(
        *(Event("uv"[number % 2], str(number), number, None, f"e{number}") for number in range(2400))
    )

    async def check(store: RedisHistories) -> None:
        await store.erase("u")
        assert await item_ids(store, "u") == []
        assert {event.user_id for event in await store.stream()} == {"v"}
        assert len(await store.stream()) == 1200
        assert len(await store.append([Event("u", "0", 0, None, "e0")])) == 1
        assert await item_ids(store, "u") == ["0"]

    stored.run(check)


def test_the_old_stream_gives_way_to_the_new_ones_and_goes(stored: Stored) -> None:
    stored.store_as_before(*(Event("u", str(number), number) for number in range(2 * BUCKETS)))

    async def check(store: RedisHistories) -> None:
        sizes = []
        for number in range(3 * BUCKETS):
            await store.append([Event(f"user {number}", "x", 1.0)])
            sizes.append(len(await store.stream()))
        assert max(sizes) < 4 * BUCKETS  # both together would be 5 × 64
        assert 0 < stored.admin.xlen(old_stream_key(stored.prefix)) < 2 * BUCKETS
        assert stored.admin.ttl(old_stream_key(stored.prefix)) == -1
        for number in range(3 * BUCKETS, 10 * BUCKETS):
            await store.append([Event(f"user {number}", "x", 1.0)])
        assert stored.admin.xlen(old_stream_key(stored.prefix)) == 0
        assert (
            0 < stored.admin.ttl(old_stream_key(stored.prefix)) <= 1000
        )  # for as long as a history may be there still
        assert len(await store.append([Event("v", "b", 2.0, None, "e")])) == 0
        assert await item_ids(store, "v") == ["a"]

    stored.store_as_before(Event("v", "a", 1.0, None, "e"))
    stored.run(check, stream_cap=3 * BUCKETS, ttl_s=1000)


def test_an_entry_that_the_stream_drops_leaves_no_id_behind(stored: Stored) -> None:
    users = [f"user {number}" for number in range(200)]

    async def check(store: RedisHistories) -> None:
        for turn in range(6):
            await store.append([Event(user, str(turn), turn) for user in users])
            assert stored.ids_match_entries()
        await store.erase("user 7")
        assert stored.ids_match_entries()
        assert not [key for key in stored.keys if key.endswith(":user 7")]
        await store.append([Event("user 7", str(number), number) for number in range(1000)])
        assert stored.ids_match_entries()

    stored.run(check, stream_cap=5 * BUCKETS)
    assert len([key for key in stored.keys if "stream_ids" in key]) < len(users)


def test_ids_outlive_a_history_that_expired_while_the_entries_stay(stored: Stored) -> None:
    async def check(store: RedisHistories) -> None:
        await store.append([Event("u", "a", 1.0, event_id="e")])
        of = keys_of(stored.prefix, "u")
        stored.admin.delete(of.history, of.event_ids)  # as their expiry does
        assert stored.admin.ttl(of.stream_ids) == -1
        await store.erase("u")
        assert await store.stream() == []

    stored.run(check)
    assert stored.keys <= {"{b062}:stream"}


def test_a_clock_that_went_back_loses_no_event_and_no_order_within_a_bucket(stored: Stored) -> None:
    of = keys_of(stored.prefix, "u")
    stored.admin.xadd(of.stream, {"user_id": "u", "item_id": "a", "timestamp": "1", "type": ""}, id="9999999999999-5")
    stored.admin.rpush(of.stream_ids, "9999999999999-5")

    async def check(store: RedisHistories) -> None:
        await store.append([Event("u", "b", 2.0), Event("u", "c", 3.0)])
        assert [event.item_id for event in await store.stream()] == ["a", "b", "c"]
        await store.erase("u")
        assert await store.stream() == []

    stored.run(check)


def test_the_stream_is_in_the_order_of_arrival_over_all_buckets(stored: Stored) -> None:
    async def check(store: RedisHistories) -> None:
        await store.append([Event(f"user {number}", str(number), number) for number in range(500)])
        await store.append([Event(f"user {number}", str(number), number) for number in range(500, 1000)])
        assert [event.item_id for event in await store.stream()] == [str(number) for number in range(1000)]

    stored.run(check)


def test_erasing_reads_only_what_is_the_users(stored: Stored) -> None:
    """Counted by Redis itself: commands that its scripts run, however long the streams are."""

    def commands() -> int:
        stats: Any = stored.admin.info("commandstats")
        own = ("lrange", "ltrim", "xdel", "xrange", "unlink", "evalsha", "eval")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in own)

    costs = []

    async def check(store: RedisHistories) -> None:
        for others in (10, 5_000):
            for start in range(0, others, 1000):
                await store.append([Event(f"user {start + number}", "x", 1.0) for number in range(min(others, 1000))])
            await store.append([Event("u", str(number), number) for number in range(5)])
            before = commands()
            await store.erase("u")
            costs.append(commands() - before)
            assert "u" not in {event.user_id for event in await store.stream()}

    stored.run(check)
    assert costs[1] <= costs[0] <= 10


@pytest.mark.parametrize("part", ["stream", "history", "event_ids", "stream_ids"])
def test_a_call_that_fails_in_the_middle_takes_back_what_it_stored(stored: Stored, part: str) -> None:
    """Also from what was there before, and of users whose keys are all right."""
    before = [Event(user, "before", 1.0, event_id="before") for user in ("u", "v")]
    sent = [Event(user, str(number), number, event_id=str(number)) for number in range(3) for user in ("u", "v", "w")]
    wrong = getattr(keys_of(stored.prefix, "w"), part)

    async def check(store: RedisHistories) -> None:
        await store.append(before)
        contents = stored.contents
        stored.admin.set(wrong, "a string")
        with pytest.raises(HistoriesUnavailable, match="WRONGTYPE"):
            await store.append([*sent, *before])
        assert stored.admin.getdel(wrong) == "a string"
        assert stored.contents == contents
        assert len(await store.append([*sent, *before])) == len(sent)
        assert await item_ids(store, "v") == ["before", "0", "1", "2"]
        assert stored.ids_match_entries()

    assert len({bucket_of(user) for user in ("u", "v", "w")}) > 1
    stored.run(check, history_cap=4)


def test_a_full_stream_drops_many_at_once_and_never_has_more_than_its_cap(stored: Stored) -> None:
    cap = 1000
    users = [user for user in map(str, range(1000)) if bucket_of(user) == 0]
    stream, sizes = stream_key(stored.prefix, 0), []

    async def check(store: RedisHistories) -> None:
        await store.append([Event(users[number % len(users)], str(number), number) for number in range(cap)])
        for number in range(cap, cap + 25):
            await store.append([Event(users[number % len(users)], str(number), number)])
            sizes.append(stored.admin.xlen(stream))
        assert stored.ids_match_entries()
        kept = [int(fields["item_id"]) for _, fields in stored.admin.xrange(stream)]
        assert kept == list(range(cap + 25 - len(kept), cap + 25))

    stored.run(check, stream_cap=cap * BUCKETS)
    assert (min(sizes), max(sizes)) == (cap - dropped_at_once(cap) + 1, cap)
