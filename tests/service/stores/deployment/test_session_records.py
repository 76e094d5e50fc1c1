"""The record of whose a merged session is, which expires, in a real Redis and a real cluster."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.errors import SessionMerged
from service.stores.history_keys import keys_of
from service.stores.protocols import Event, session_owner
from service.stores.redis_histories import RedisHistories
from tests.support.stores.item_ids import item_ids
from tests.support.stores.real_redis import open_histories

NOW = 1_000_000.0
WHOLE_S, LEFT_S = 3600, 100
Check = Callable[[RedisHistories], Awaitable[None]]


@pytest.fixture(params=["redis", "cluster"])
def run(request: pytest.FixtureRequest) -> Callable[[Check], None]:
    """Runs a check on histories whose sessions live for an hour."""
    clustered = request.param == "cluster"
    url = request.getfixturevalue("cluster").url if clustered else request.getfixturevalue("redis_url")

    async def checked(check: Check) -> None:
        store = open_histories(url, prefix=f"test-{uuid.uuid4().hex}", timeout_s=5.0, session_ttl_hours=1)
        try:
            await check(store)
        finally:
            await store.close()

    return lambda check: asyncio.run(checked(check))


def record(store: RedisHistories, session: str) -> str:
    return keys_of(store._prefix, session_owner(session)).merges


async def merge(store: RedisHistories, session: str, user: str) -> None:
    """Merge a session, and let all but `LEFT_S` of the time of its record pass."""
    await store.merge(session, user)
    assert await left_s(store, session) > LEFT_S
    await store._writes.call("EXPIRE", record(store, session), LEFT_S, kind=int)


async def left_s(store: RedisHistories, session: str) -> int:
    found: int = await store._reads.call("TTL", record(store, session), kind=int)
    return found


def of_session(session: str, item: str, **more: Any) -> Event:
    return Event(session_owner(session), item, NOW, **more)


def test_every_event_of_a_merged_session_renews_its_record(run: Callable[[Check], None]) -> None:
    async def check(store: RedisHistories) -> None:
        for session, user in (("s", "anna"), ("t", "bob"), ("idle", "anna")):
            await merge(store, session, user)
        sent = [of_session("s", "a"), of_session("t", "b"), of_session("s", "c"), Event("carl", "d", NOW)]
        assert len(await store.append(sent)) == 4
        assert WHOLE_S - 60 < await left_s(store, "s") <= WHOLE_S
        assert WHOLE_S - 60 < await left_s(store, "t") <= WHOLE_S
        assert 0 < await left_s(store, "idle") <= LEFT_S
        assert (await item_ids(store, "anna"), await item_ids(store, "bob")) == (["a", "c"], ["b"])

    run(check)


@pytest.mark.parametrize("more", [{"stored_in": "impressions"}, {"stored_in": "stream"}, {"event_id": "known"}])
def test_an_event_that_is_in_no_history_renews_it_too(run: Callable[[Check], None], more: dict[str, Any]) -> None:
    async def check(store: RedisHistories) -> None:
        await store.append([Event("anna", "a", NOW, event_id="known")])
        await merge(store, "s", "anna")
        await store.append([of_session("s", "b", **more)])
        assert await left_s(store, "s") > LEFT_S
        assert await item_ids(store, "anna") == ["a"]

    run(check)


def test_a_visit_longer_than_the_time_of_the_record_stays_the_users(run: Callable[[Check], None]) -> None:
    async def check(store: RedisHistories) -> None:
        await store.merge("s", "anna")
        for item in "abc":
            await store._writes.call("PEXPIRE", record(store, "s"), 500, kind=int)
            await store.append([of_session("s", item)])
        await asyncio.sleep(0.6)
        await store.append([of_session("s", "d")])
        assert await item_ids(store, "anna") == ["a", "b", "c", "d"]
        assert await item_ids(store, session_owner("s")) == []
        with pytest.raises(SessionMerged):
            await store.merge("s", "bob")

    run(check)


def test_a_repeated_merge_renews_the_record_and_a_refused_one_does_not(run: Callable[[Check], None]) -> None:
    async def check(store: RedisHistories) -> None:
        await merge(store, "s", "anna")
        with pytest.raises(SessionMerged):
            await store.merge("s", "bob")
        assert 0 < await left_s(store, "s") <= LEFT_S
        assert await store.merge("s", "anna") == 0
        assert await left_s(store, "s") > LEFT_S

    run(check)


def test_once_the_record_has_expired_the_session_is_nobodys(run: Callable[[Check], None]) -> None:
    async def check(store: RedisHistories) -> None:
        await store.merge("s", "anna")
        await store._writes.call("PEXPIRE", record(store, "s"), 1, kind=int)
        await asyncio.sleep(0.05)
        await store.append([of_session("s", "a")])
        assert await store.merged_into("s") is None
        assert await item_ids(store, session_owner("s")) == ["a"]
        assert await store.merge("s", "bob") == 1

    run(check)
