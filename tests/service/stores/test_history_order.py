"""Late events, impressions and sessions in the store: on the fake in memory, a real Redis and a real cluster."""

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from time import time
from typing import Any

import pytest
import redis

from service.errors import HistoriesUnavailable, OutcomesUnavailable, SessionMerged
from service.stores.history_keys import keys_of
from service.stores.protocols import Event, session_owner
from service.stores.redis_erasure_scripts import ERASE
from service.stores.redis_histories import RedisHistories
from service.stores.redis_pipeline import Script
from tests.support.stores.item_ids import item_ids
from tests.support.stores.memory_histories import MemoryHistories
from tests.support.stores.real_redis import open_histories

OpenStore = Callable[..., Any]
NOW = time()
SESSION = session_owner("s")


@pytest.fixture(autouse=True)
def _present(monkeypatch: pytest.MonkeyPatch) -> None:
    """NOW is the time of each test: the module may be imported long before, and what is late depends on the clock."""
    monkeypatch.setattr(sys.modules[__name__], "NOW", time())


@pytest.fixture(params=["memory", "redis", "cluster"])
def open_store(request: pytest.FixtureRequest) -> OpenStore:
    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[MemoryHistories | RedisHistories]:
        if request.param == "memory":
            yield MemoryHistories(**options)
            return
        clustered = request.param == "cluster"
        url = request.getfixturevalue("cluster").url if clustered else request.getfixturevalue("redis_url")
        store = open_histories(url, prefix=f"test-{uuid.uuid4().hex}", timeout_s=5.0, **options)
        yield store
        await store.close()

    return opened


def event(item: str, ago: float, user: str = "u", **more: Any) -> Event:
    return Event(user, item, NOW - ago, **more)


async def shown(store: MemoryHistories | RedisHistories, owner: str) -> list[str]:
    return [entry.item_id for entry in await store.impressions(owner)]


def test_an_event_within_the_window_gets_its_place_by_its_time(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            await store.append([event("a", 600), event("c", 200)])
            await store.append([event("b", 400)])
            await store.append([event("0", 900), event("b2", 400), event("d", 100)])
            assert await item_ids(store, "u") == ["0", "a", "b", "b2", "c", "d"]

    asyncio.run(check())


def test_an_event_without_a_time_comes_last_whatever_clock_took_its_arrival(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            await store.append([event("a", 600), event("b", 10)])
            await store.append([event("c", 300, is_timed=False)])
            await store.append([event("other", 20, user="v"), event("d", 310, is_timed=False)])
            await store.append([event("e", 5)])
            assert await item_ids(store, "u") == ["a", "b", "c", "d", "e"]

    asyncio.run(check())


def test_an_event_older_than_the_window_comes_last_and_is_passed_by_none(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store(late_s=600) as store:
            await store.append([event("a", 300), event("b", 100)])
            await store.append([event("old", 700), event("older", 800)])
            await store.append([event("late", 400)])  # its place is behind the last entry with an earlier time
            assert await item_ids(store, "u") == ["a", "b", "older", "old", "late"]

    asyncio.run(check())


def test_an_event_whose_time_is_still_to_come_is_passed_by_none(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            await store.append([event("ahead", -80_000)])
            await store.append([event("next", 60)])
            await store.append([event("late", 90)])
            assert await item_ids(store, "u") == ["ahead", "late", "next"]

    asyncio.run(check())


def test_late_events_over_the_cap_leave_the_newest(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store(history_cap=3) as store:
            await store.append([event(str(ago), ago) for ago in (50, 40, 30)])
            await store.append([event(str(ago), ago) for ago in (45, 35)])
            assert await item_ids(store, "u") == ["40", "35", "30"]

    asyncio.run(check())


def test_a_long_late_call_is_merged_whole(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store(history_cap=5000) as store:
            ages = list(range(3000))
            await store.append([event(str(ago), ago) for ago in ages[::3]])
            await store.append([event(str(ago), ago) for ago in ages[1::3]])
            await store.append([event(str(ago), ago) for ago in ages[2::3]])
            assert await item_ids(store, "u") == [str(ago) for ago in reversed(ages)]

    asyncio.run(check())


def test_impressions_and_ignored_events_stay_out_of_the_history(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store(impressions_cap=2) as store:
            seen = [event(name, 9, event_id=name, stored_in="impressions") for name in "abc"]
            assert len(await store.append([*seen, event("x", 9, stored_in="stream"), event("y", 9)])) == 5
            assert len(await store.append(seen)) == 0
            assert await item_ids(store, "u") == ["y"]
            assert await shown(store, "u") == ["b", "c"]
            assert sorted(entry.item_id for entry in await store.stream()) == ["a", "b", "c", "x", "y"]
            await store.erase("u")
            assert (await shown(store, "u"), await store.stream()) == ([], [])

    asyncio.run(check())


def test_a_session_is_merged_into_its_user_once(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            await store.append([event("a", 500), event("d", 100)])
            own = [event("b", 400, SESSION, event_id="e"), event("c", 200, SESSION)]
            await store.append([*own, event("i", 50, SESSION, stored_in="impressions")])
            assert await store.merge("s", "u") == 2
            assert await item_ids(store, "u") == ["a", "b", "c", "d"]
            assert await shown(store, "u") == ["i"]
            assert (await item_ids(store, SESSION), await shown(store, SESSION)) == ([], [])
            assert await store.merge("s", "u") == 0
            assert len(await store.append([event("b", 400, event_id="e")])) == 0  # its event ids moved too
            with pytest.raises(SessionMerged):
                await store.merge("s", "v")
            assert await item_ids(store, "v") == []

    asyncio.run(check())


def test_late_events_of_a_merged_session_are_the_users(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            assert await store.merge("s", "u") == 0
            mixed = [event("a", 30, SESSION), event("b", 20, "other"), event("c", 10, session_owner("t"))]
            assert len(await store.append(mixed)) == 3
            assert await item_ids(store, "u") == ["a"]
            assert await item_ids(store, "other") == ["b"]
            assert await item_ids(store, session_owner("t")) == ["c"]
            assert await item_ids(store, SESSION) == []

    asyncio.run(check())


def test_a_merged_session_names_its_user_until_the_user_is_erased(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            await store.append([event("a", 9, SESSION), event("b", 9, "s")])
            assert await store.merged_into("s") is None
            await store.merge("s", "ann/ä")
            assert (await store.merged_into("s"), await store.merged_into("t")) == ("ann/ä", None)
            await store.erase("ann/ä")
            assert await store.merged_into("s") is None

    asyncio.run(check())


def test_the_caller_says_how_an_event_of_a_merged_session_is_the_users(open_store: OpenStore) -> None:
    def of_user(event: Event, user_id: str) -> Event:
        return replace(event, user_id=user_id, arm=f"prices/of-{user_id}")

    async def check() -> None:
        async with open_store() as store:
            await store.merge("s", "u")
            sent = [event("a", 1, SESSION), event("b", 2, session_owner("t")), event("c", 3)]
            assert len(await store.append(sent, of_user)) == 3
            found = sorted((entry.item_id, entry.user_id, entry.arm) for entry in await store.stream())
            assert found == [("a", "u", "prices/of-u"), ("b", session_owner("t"), None), ("c", "u", None)]

    asyncio.run(check())


def test_a_session_is_no_user_of_the_same_name(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            await store.append([event("a", 1, SESSION), event("b", 1, "s")])
            assert (await item_ids(store, SESSION), await item_ids(store, "s")) == (["a"], ["b"])
            await store.erase("s")
            assert (await item_ids(store, SESSION), await item_ids(store, "s")) == (["a"], [])

    asyncio.run(check())


def test_erasing_a_user_reaches_merged_sessions(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            for session in "st":
                await store.append([event("a", 9, session_owner(session))])
                await store.merge(session, "u")
            await store.append([event("b", 9, "v")])
            await store.erase("u")
            assert [entry.item_id for entry in await store.stream()] == ["b"]
            assert await store.merge("s", "v") == 0  # nothing says whose it was

    asyncio.run(check())


def test_erasing_a_user_reaches_a_session_that_is_merged_meanwhile(redis_url: str) -> None:
    prefix = f"test-{uuid.uuid4().hex}"

    async def check(client: "redis.Redis[bytes]") -> None:
        first, second = (open_histories(redis_url, prefix=prefix, timeout_s=5.0) for _ in range(2))
        await first.append([event("a", 8, SESSION, event_id="e"), event("b", 9, "u")])
        run = first._writes.run

        async def after_a_merge(script: Script, *arguments: Any) -> Any:
            if script is ERASE and not await first.merged_sessions("u"):
                first._writes.run = run  # type: ignore[method-assign]
                assert await second.merge("s", "u") == 1
            return await run(script, *arguments)

        first._writes.run = after_a_merge  # type: ignore[method-assign]
        await first.erase("u")
        assert await second.stream() == []
        assert not [key for key in client.keys(f"{prefix}*") if not key.endswith(b":stream")]
        await first.close()
        await second.close()

    with redis.Redis.from_url(redis_url) as client:
        asyncio.run(check(client))


def test_an_erasure_hands_on_every_owner_before_it_deletes_its_data(redis_url: str) -> None:
    """Also a session that is merged meanwhile; if another store fails, the erasure finds the same owners again."""
    prefix = f"test-{uuid.uuid4().hex}"
    handed_on: list[tuple[str, int]] = []

    async def check() -> None:
        first, second = (open_histories(redis_url, prefix=prefix, timeout_s=5.0) for _ in range(2))
        await first.append([event("a", 7, SESSION), event("b", 8, session_owner("s2")), event("c", 9, "u")])
        await first.merge("s", "u")

        async def failing(owner: str) -> None:
            raise OutcomesUnavailable("switched off")

        async def forget(owner: str) -> None:
            handed_on.append((owner, len([one for one in await second.stream() if one.user_id == owner])))
            if owner == "u" and len(handed_on) == 2:
                await second.merge("s2", "u")

        with pytest.raises(OutcomesUnavailable):
            await first.erase("u", failing)
        await first.erase("u", forget)
        assert await second.stream() == []
        await first.close()
        await second.close()

    asyncio.run(check())
    assert handed_on == [(SESSION, 1), ("u", 1), (session_owner("s2"), 1), ("u", 0)]


def test_erasing_a_user_leaves_a_session_that_became_another_users_to_that_user(redis_url: str) -> None:
    """What says whose a session is expires; the visitor may keep its id, and log in as somebody else."""
    prefix = f"test-{uuid.uuid4().hex}"

    async def check(client: "redis.Redis[bytes]") -> None:
        store = open_histories(redis_url, prefix=prefix, timeout_s=5.0)
        await store.append([event("a", 9, SESSION)])
        assert await store.merge("s", "u") == 1
        client.delete(keys_of(prefix, SESSION).merges)  # as after its time to live
        await store.append([event("b", 8, SESSION)])
        assert await store.merge("s", "v") == 1
        await store.erase("u")
        await store.append([event("c", 7, SESSION)])
        assert [entry.item_id for entry in await store.entries("v")] == ["b", "c"]
        with pytest.raises(SessionMerged):
            await store.merge("s", "w")
        await store.erase("v")
        assert await store.stream() == []
        assert await store.merge("s", "w") == 0
        await store.close()

    with redis.Redis.from_url(redis_url) as client:
        asyncio.run(check(client))


def test_keys_of_a_merge_expire_and_an_erasure_leaves_none(redis_url: str) -> None:
    prefix = f"test-{uuid.uuid4().hex}"

    async def check(client: "redis.Redis[bytes]") -> None:
        store = open_histories(redis_url, prefix=prefix, ttl_s=1000, session_ttl_hours=1, impressions_ttl_days=2)
        await store.append([event("a", 9, SESSION, event_id="e")])
        assert client.ttl(keys_of(prefix, SESSION).history) == client.ttl(keys_of(prefix, SESSION).event_ids) == 3600
        await store.append([event("i", 9, SESSION, stored_in="impressions")])
        await store.merge("s", "u")
        ttls = [client.ttl(key) for key in keys_of(prefix, "u")]
        assert ttls == [-2, 1000, 1000, -2, 2 * 86_400, -1]
        assert client.ttl(keys_of(prefix, SESSION).merges) == 3600
        await store.erase("u")
        streams = {keys_of(prefix, owner).stream.encode() for owner in ("u", SESSION)}
        assert set(client.keys(f"{prefix}*")) <= streams
        assert [client.xlen(stream) for stream in streams] == [0, 0]
        await store.close()

    with redis.Redis.from_url(redis_url) as client:
        asyncio.run(check(client))


@pytest.mark.parametrize("part", ["history", "event_ids", "impressions", "merges"])
def test_a_merge_with_a_key_of_another_kind_changes_nothing(redis_url: str, part: str) -> None:
    prefix = f"test-{uuid.uuid4().hex}"

    async def check(client: "redis.Redis[bytes]") -> None:
        store = open_histories(redis_url, prefix=prefix, timeout_s=5.0)
        await store.append([event("a", 9, SESSION, event_id="e"), event("i", 9, SESSION, stored_in="impressions")])
        client.set(getattr(keys_of(prefix, "u"), part), "odd")
        before = {key: client.dump(key) for key in client.keys(f"{prefix}*")}
        with pytest.raises(HistoriesUnavailable, match="another kind"):
            await store.merge("s", "u")
        assert {key: client.dump(key) for key in client.keys(f"{prefix}*")} == before
        await store.close()

    with redis.Redis.from_url(redis_url) as client:
        asyncio.run(check(client))


def test_a_user_of_the_old_layout_keeps_its_history_in_a_merge(redis_url: str) -> None:
    prefix = f"test-{uuid.uuid4().hex}"

    async def check(client: "redis.Redis[bytes]") -> None:
        store = open_histories(redis_url, prefix=prefix, timeout_s=5.0)
        client.rpush(f"{prefix}:{{u}}:history", f"a\x1f{NOW - 500:.0f}\x1f")
        await store.append([event("b", 9, SESSION)])
        assert await store.merge("s", "u") == 1
        assert await item_ids(store, "u") == ["a", "b"]
        assert client.exists(f"{prefix}:{{u}}:history") == 0
        await store.close()

    with redis.Redis.from_url(redis_url) as client:
        asyncio.run(check(client))


def test_a_user_with_too_many_sessions_loses_the_oldest_whole(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.stores.history_records.MOST_MERGES", 2)
    prefix = f"test-{uuid.uuid4().hex}"

    async def check(client: "redis.Redis[bytes]") -> None:
        store = open_histories(redis_url, prefix=prefix, timeout_s=5.0)
        for number, session in enumerate("abc"):
            await store.append([event(session, 9 - number, session_owner(session))])
            await store.merge(session, "u")
        assert sorted(entry.item_id for entry in await store.stream()) == ["b", "c"]
        assert client.zrange(keys_of(prefix, "u").merges, 0, -1) == [b"b", b"c"]
        await store.close()

    with redis.Redis.from_url(redis_url) as client:
        asyncio.run(check(client))


@pytest.mark.parametrize("merges", range(5))
def test_what_the_last_attempt_stores_is_stored(redis_url: str, monkeypatch: pytest.MonkeyPatch, merges: int) -> None:
    """Sessions that are merged meanwhile make a store try again, up to three times."""

    async def scene() -> None:
        store = open_histories(redis_url, prefix=f"test-{uuid.uuid4().hex}")
        refused, append = [None] * merges, store._append

        async def merged_meanwhile(events: Any) -> Any:
            return refused.pop() if refused else await append(events)

        monkeypatch.setattr(store, "_append", merged_meanwhile)
        stored = store.append([Event("u", "i1", NOW)])
        if merges > 3:
            with pytest.raises(HistoriesUnavailable, match="are being merged"):
                await stored
        else:
            assert (list(await stored), await item_ids(store, "u")) == ([0], ["i1"])
        await store.close()

    asyncio.run(scene())
